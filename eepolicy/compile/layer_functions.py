"""The functions that are compiled, and the dimensions of their inputs that change between calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from eepolicy.compile.functional import function_of, tensors_of
from eepolicy.compile.gemv import Product, Products, library, padded_gemv
from eepolicy.compile.head_module import HeadModule
from eepolicy.compile.kernel_cache import DynamicDims
from eepolicy.compile.native import MAX_ROWS, serves
from eepolicy.compile.sdpa import attention
from eepolicy.model.families import Rotation

#: columns of a block, on a CPU, up to which attention is written out for many rows too: a refresh
#: has so many
MAX_UNROLLED_COLUMNS = 4
#: instead of a number of columns: attention is written out for any number of them
ANY_COLUMNS = 0

#: makes the function that is compiled, see `layer_function`
MakeFunction: TypeAlias = Callable[[nn.Module, Product | None, int, bool], Callable[..., Any]]


class KVColumns:
    """Keys and values of one layer, in the interface of a stock cache.

    Args:
        keys: (rows, heads, columns, d), the new columns included.
        values: (rows, heads, columns, d of the values).
        indices: (new columns,), their indices.
        fresh: (rows, new columns) of bool, those to store; None for all of them.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, indices: Tensor, fresh: Tensor | None = None
    ) -> None:
        self.keys, self.values, self.indices = keys, values, indices
        self.fresh = None if fresh is None else fresh[:, None, :, None]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new columns, (rows, heads, new columns, d), and return all of them."""
        for stored, new in ((self.keys, keys), (self.values, values)):
            if self.fresh is not None:
                new = torch.where(self.fresh, new, stored[:, :, self.indices])
            # by index: the compiler turns `index_copy_` into a copy of all columns
            stored[:, :, self.indices] = new
        return self.keys, self.values

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: object,
        scale: float | None = None,
        fixed: bool,
        **kwargs: object,
    ) -> Tensor:
        """Replace `F.scaled_dot_product_attention`, without dropout and `is_causal`.

        Causal attention has a mask here; `CompiledExecutor.check` finds a layer that relies on
        `is_causal`.  Where a layer has repeated the keys for the heads that share them, the stored
        keys are used: a copy of all columns would take as long as the attention.
        """
        if key.shape[1] > self.keys.shape[1]:
            key, value = self.keys, self.values
        return attention(query, key, value, attn_mask, scale, fixed)


def layer_function(
    layer: nn.Module, product: Product | None, rotated: int, masked: bool
) -> Callable[..., Tensor]:
    """A layer as a function of its tensors and of the inputs of `run_layer`.

    Args:
        layer: decoder layer.
        product: replacement of `F.linear`, which also replaces attention; `F.linear` replaces
            attention alone, None replaces neither.
        rotated: number of tensors that the layer reads about positions: cosines and sines, or 0.
        masked: whether the layer takes a mask.

    Returns:
        A function of the tensors, hidden states, cosines and sines, mask, and the tensors of
        `KVCache.view`.
    """
    call, count = function_of(layer), len(tensors_of(layer))

    def run(*args: Tensor) -> Tensor:
        hidden, *rest = args[count:]
        options: dict[str, Any] = {"attention_mask": None, "use_cache": True}
        if rotated:
            options["position_embeddings"], rest = tuple(rest[:rotated]), rest[rotated:]
        if masked:
            options["attention_mask"], rest = rest[0], rest[1:]
        options["past_key_values"] = columns = KVColumns(*rest)
        attend = partial(columns.attend, fixed=product not in (padded_gemv, library))
        with Products(product, attend) if product else nullcontext():
            out: Tensor | tuple[Tensor, ...] = call(args[:count], hidden, **options)
        return out[0] if isinstance(out, tuple) else out

    return run


def fill_function(
    layer: nn.Module, product: Product | None, rotated: int, masked: bool
) -> Callable[..., tuple[()]]:
    """As `layer_function`, for the keys and values that the layer stores.

    The function returns nothing, so the compiler drops the rest of the layer.
    """
    run = layer_function(layer, product, rotated, masked)

    def fill(*args: Tensor) -> tuple[()]:
        run(*args)
        return ()

    return fill


def readout_function(readout: HeadModule, product: Product) -> Callable[..., Tensor]:
    """A readout as a function of its tensors and of hidden states."""
    call = function_of(readout)

    def read(*args: Tensor) -> Tensor:
        with Products(product):
            out: Tensor = call(args[:-1], args[-1])
        return out

    return read


def unrolled_columns(hidden: Tensor) -> int | None:
    """Number of columns for which attention is written out, on a CPU.

    Attention then has one sum for each column, so their number is fixed, unless it is
    `ANY_COLUMNS`.

    Args:
        hidden: (rows, columns, width).

    Returns:
        The number, or `ANY_COLUMNS`; None where attention is not written out.
    """
    columns = hidden.shape[1]
    if hidden.device.type != "cpu":
        return None
    if columns <= MAX_UNROLLED_COLUMNS:
        return columns
    return ANY_COLUMNS if serves(hidden) and columns <= MAX_ROWS else None


def causal_mask(hidden: Tensor) -> Tensor:
    """The mask of a first block (rows, columns, width): (1, 1, columns, columns) of bool."""
    shape = (1, 1, hidden.shape[1], hidden.shape[1])
    return torch.ones(shape, dtype=torch.bool, device=hidden.device).tril()


def dynamic_dims(
    fixed: tuple[bool, bool],
    hidden: Tensor,
    rotation: Rotation | None,
    mask: Tensor | None = None,
    view: Sequence[Tensor] = (),
) -> list[DynamicDims]:
    """Sizes and strides that change between calls; one kernel serves all their values.

    The number of stored columns always changes.

    Args:
        fixed: whether the number of rows is fixed, and that of columns.
        hidden: (rows, columns, width).
        rotation: cosines and sines, (rows, columns, d) each.
        mask: (rows, heads, columns, stored columns).
        view: tensors of `KVCache.view`.
    """
    block = [dim for dim in (0, 1) if not fixed[dim]]  # of (rows, columns, ...)
    dims = [
        DynamicDims(tensor, [dim for dim in block if dim < tensor.ndim - 1])
        for tensor in (hidden, *(rotation or ()))
    ]
    if mask is not None:
        dims.append(DynamicDims(mask, [2 * dim for dim in block] + [mask.ndim - 1]))
    if view:
        # keys and values (rows, heads, stored columns, d): the outer strides follow the capacity
        sizes = [0, 2] if 0 in block else [2]
        dims += [DynamicDims(tensor, sizes, (0, 1)) for tensor in view[:2]]
        dims += [DynamicDims(tensor, [0] if 1 in block else []) for tensor in view[2:3]]
        dims += [DynamicDims(tensor, block) for tensor in view[3:]]
    return dims


def optional(tensor: Tensor | None) -> tuple[Tensor, ...]:
    """No tensor or one, to put among arguments."""
    return () if tensor is None else (tensor,)
