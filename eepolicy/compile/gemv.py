"""Matrix-vector products that a compiler fuses with the operations around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eepolicy.heads.weights import PLAIN_TENSORS

#: replacement of `F.linear`: rows (..., width), weight (out, width) and a bias (out,) or None ->
#: (..., out)
Product: TypeAlias = Callable[..., Tensor]

#: rows, on a CPU, up to which a product with a weight is written as sums.  Measured on weights of
#: the pocket model and of SmolLM2, as a share of the time of the library: 0.4 to 0.6 for three
#: rows, 0.4 to 0.7 for five, 0.4 to 0.9 for eight; for more rows the library is as fast
MAX_GEMV_ROWS_CPU = 8
#: numbers of rows, on a CPU, that have a kernel of their own: those of a refresh, a single row and
#: a batch of eight.  Other numbers are padded to `MAX_GEMV_ROWS_CPU`, which takes as long as
#: `MAX_GEMV_ROWS_CPU` rows and saves a compilation
UNPADDED_GEMV_ROWS_CPU = frozenset({1, 2, 3, 4, MAX_GEMV_ROWS_CPU})
#: rows, on a CUDA device, up to which attention is written out and layers are captured
MAX_CAPTURED_ROWS = 64
#: rows of a weight, (out,), from which sums pay; below, the call of the kernel takes longer
MIN_GEMV_OUT_FEATURES = 32
#: numbers in a weight, on a CUDA device, up to which the compiler writes the sum: for weights with
#: more rows than columns, and for the others.  Measured on an H200, in microseconds for a layer of
#: Step-Audio-2-mini, with the library in brackets: keys and values 4 (15), the two tall weights and
#: the operations between them 77 in one kernel (75 in three), a whole layer 156 (167); but queries
#: 11 (11), the output of attention 12 (11), and the widest weight 48 (37)
MAX_TALL_GEMV_WEIGHTS_CUDA, MAX_WIDE_GEMV_WEIGHTS_CUDA = 2**27, 2**22
#: numbers in a weight, on a CPU, from which fewer than `MAX_GEMV_ROWS_CPU` rows read it in four
#: interleaved parts
MIN_INTERLEAVED_WEIGHTS_CPU = 2**20


def product_of(hidden: Tensor) -> Product | None:
    """The replacement of `F.linear` for so many rows; None where the layer is compiled unchanged.

    Args:
        hidden: (..., width).
    """
    rows = hidden.numel() // hidden.shape[-1]
    if hidden.device.type == "cuda":
        return gemv_or_blas if rows == 1 else library if rows <= MAX_CAPTURED_ROWS else None
    if hidden.device.type != "cpu" or rows > MAX_GEMV_ROWS_CPU:
        return None
    return gemv if rows in UNPADDED_GEMV_ROWS_CPU else padded_gemv


def gemv(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., width) with (out, width): (..., out), as one sum for each row.

    The compiler puts the sums into one loop, which reads the weight once.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    return _sums(rows, vectors, weight, bias)


def padded_gemv(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `gemv`, with rows of zeros up to `MAX_GEMV_ROWS_CPU`."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    return _sums(F.pad(rows, (0, 0, 0, MAX_GEMV_ROWS_CPU - rows.shape[0])), vectors, weight, bias)


def gemv_or_blas(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `gemv` for weights for which the library of a CUDA device is slower; else `F.linear`."""
    tall = len(weight) > weight.shape[1]
    maximum = MAX_TALL_GEMV_WEIGHTS_CUDA if tall else MAX_WIDE_GEMV_WEIGHTS_CUDA
    return (gemv if weight.numel() <= maximum else F.linear)(vectors, weight, bias)


def library(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`, as a Python function whose identity can be part of a key."""
    return F.linear(vectors, weight, bias)


def _sums(rows: Tensor, vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Products of the first of some rows with a weight.

    Rows are taken by index and not by `unbind`: the compiler then computes an input that is used
    several times, such as a norm, once, and not again for each row of the weight.

    Args:
        rows: (count, width), with padding after the vectors.
        vectors: (..., width), whose leading shape the result has.
        weight: (out, width).
        bias: (out,), or None.

    Returns:
        (..., out).
    """
    count = len(rows)
    parts = weight.unflatten(0, (_interleaved(count, weight), -1)).unbind()
    product = torch.stack([(part * rows[i]).sum(-1) for i in range(count) for part in parts])
    product = product.view(count, len(weight))[: vectors.numel() // vectors.shape[-1]]
    product = product.view(*vectors.shape[:-1], len(weight))
    return product if bias is None else product + bias


def _interleaved(count: int, weight: Tensor) -> int:
    """Number of parts of a weight that one loop reads side by side.

    The loop then waits for several rows at once, and loads a vector once for all of them.  Each
    part has a call of its own around the kernel, which takes half a microsecond.  Measured on one
    thread, as a share of the time of one part: the head of the pocket model 0.6 to 0.75; layers
    0.85 to 1 with eight rows, and 1 with fewer.

    Args:
        count: number of rows.
        weight: (out, width).
    """
    if weight.device.type != "cpu":
        return 1
    large = weight.numel() >= MIN_INTERLEAVED_WEIGHTS_CPU
    most = 2 if count == MAX_GEMV_ROWS_CPU else 4 if large else 1
    return next(parts for parts in (most, 2, 1) if len(weight) % parts == 0)


#: products whose kernels serve one number of rows
ONE_SHAPE: tuple[Product, ...] = (gemv, gemv_or_blas)


class Products(TorchFunctionMode):
    """Replaces `F.linear`, and optionally attention, in the code that runs inside.

    The library of a CPU takes longer for few rows than reading the weight does.  The compiler fuses
    the replacement with the operations around it.

    Args:
        product: replacement of `F.linear`.
        attention: replacement of `F.scaled_dot_product_attention`; None keeps it.
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
        # a quantised weight has a type of its own, which says how it is multiplied
        if func is F.linear and not kwargs and type(args[1]) in PLAIN_TENSORS:
            long = len(args[1]) >= MIN_GEMV_OUT_FEATURES
            return self.product(*args) if long else func(*args)
        if func is F.scaled_dot_product_attention and self.attention is not None:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
