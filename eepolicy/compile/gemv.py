"""Products of a few vectors with a weight, written so that a compiler makes one pass of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: of vectors (..., width) with a weight (out, width) and a bias, if any: (..., out)
Product = Callable[..., Tensor]

#: vectors, on a CPU, up to which a product with a weight is written as sums.  Measured on weights
#: of the pocket model and of SmolLM2, as a share of the library's time: 0.4 to 0.6 for three
#: vectors, 0.4 to 0.7 for five, 0.4 to 0.9 for eight; for more the library is as fast
FEW = 8
#: numbers of vectors that have kernels of their own, as a refresh has, a single row and a batch of
#: eight; others are filled up to `FEW`, which takes as long as `FEW` of them, and no compilation
EXACT = frozenset({1, 2, 3, 4, FEW})
#: vectors on a CUDA device up to which attention is written out, and layers are captured
MAX_CAPTURED_ROWS = 64
#: rows of a weight from which writing sums pays: below, calling the kernel takes longer
NARROWEST = 32
#: numbers in a weight up to which the compiler's own sum is taken on a CUDA device, where it has
#: more rows than columns, and where it has not.  Measured on an H200, microseconds of a layer of
#: Step-Audio-2-mini, the library's in brackets: keys and values 4 (15), the two tall ones with what
#: is between 77 in one kernel (75 in three), a whole layer 156 (167); but queries 11 (11) and what
#: leaves attention 12 (11), and the widest 48 (37)
TALL, SMALL = 2**27, 2**22
#: numbers in a weight from which fewer than `FEW` vectors read it in four parts side by side
LARGE = 2**20


def product_of(hidden: Tensor) -> Product | None:
    """How a layer of so many vectors writes its products; None where it is compiled as it is."""
    vectors = hidden.numel() // hidden.shape[-1]
    if hidden.device.type == "cuda":
        return gemv_or_blas if vectors == 1 else library if vectors <= MAX_CAPTURED_ROWS else None
    if hidden.device.type != "cpu" or vectors > FEW:
        return None
    return gemv if vectors in EXACT else padded_gemv


def gemv(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., width) with (out, width): (..., out).  All vectors meet a row while it is at hand.

    One sum for each vector: the compiler takes them in one loop, which reads the weight once.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    return _each(rows, len(rows), vectors, weight, bias)


def padded_gemv(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `gemv`, for any number up to `FEW`: zeros stand in for those that lack."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    filled = F.pad(rows, (0, 0, 0, FEW - rows.shape[0]))
    return _each(filled, FEW, vectors, weight, bias)


def gemv_or_blas(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `gemv` for the weights that the library of a CUDA device takes longer for."""
    most = TALL if len(weight) > weight.shape[1] else SMALL
    return (gemv if weight.numel() <= most else F.linear)(vectors, weight, bias)


def library(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, which has no code of its own for the compiler."""
    return F.linear(vectors, weight, bias)


def _each(rows: Tensor, count: int, vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Products of rows (count, width), of which the first are the vectors (..., width).

    Rows are taken by index, not by `unbind`: what is used more than once, a norm say, the compiler
    computes once, and not again for each row of the weight.
    """
    parts = weight.unflatten(0, (_parts(count, weight), -1)).unbind()
    product = torch.stack([(part * rows[i]).sum(-1) for i in range(count) for part in parts])
    product = product.view(count, len(weight))[: vectors.numel() // vectors.shape[-1]]
    product = product.view(*vectors.shape[:-1], len(weight))
    return product if bias is None else product + bias


def _parts(count: int, weight: Tensor) -> int:
    """In how many parts a weight is read side by side, in one loop, for so many vectors.

    A loop then waits for several rows at once, and loads a vector once for all of them; but each
    part has a call of its own around the kernel, half a microsecond long.  Measured on one thread,
    as a share of the time of one part: the head of the pocket model 0.6 to 0.75; layers 0.85 to 1
    with eight vectors, and with fewer 1.
    """
    if weight.device.type != "cpu":
        return 1
    most = 2 if count == FEW else 4 if weight.numel() >= LARGE else 1
    return next(parts for parts in (most, 2, 1) if len(weight) % parts == 0)


#: products whose kernels are for one number of vectors
ONE_SHAPE: tuple[Product, ...] = (gemv, gemv_or_blas)


class Products(TorchFunctionMode):
    """Products with a weight, written in another way.

    A CPU's library for products takes longer for few vectors than reading the weight does; written
    as sums, the compiler joins them with what is around.

    Args:
        product: in place of `F.linear`.
        attention: in place of `F.scaled_dot_product_attention`, if anything is.
    """

    def __init__(self, product: Product, attention: Callable[..., Tensor] | None = None) -> None:
        self.product, self.attention = product, attention

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and len(args[1]) >= NARROWEST:
            return self.product(*args)
        if func is F.scaled_dot_product_attention and self.attention is not None:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
