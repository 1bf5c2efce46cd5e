"""Inputs and tolerances of the check of compiled layers against the stock layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eepolicy.compile.kernel_cache import KernelCache, cannot_compile
from eepolicy.errors import translated
from eepolicy.model.backbone import Backbone
from eepolicy.model.kv_cache import KVCache

#: largest difference from the stock layers, as a share of the largest hidden state.  Measured: 1e-6
#: in float32 (sums in another order), 8e-3 in bfloat16
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: columns of the blocks of the check.  The last block is compiled; the stock layers mask the second
BLOCKS = (2, 2, 1)


class Block(NamedTuple):
    """Hidden states of consecutive columns.

    Attributes:
        hidden: (1, columns, width).
        start: first column.
    """

    hidden: Tensor
    start: int


class UncompiledKernels(KernelCache):
    """Calls the functions that would be compiled, without the compiler."""

    def run(
        self,
        key: Hashable,
        guard: Hashable,
        make: Callable[[], Callable[..., Any]],
        args: Sequence[Tensor],
        dynamic: object,
    ) -> tuple[Tensor, ...]:
        with translated(cannot_compile):
            out = make()(*args)
        return out if isinstance(out, tuple) else (out,)


def check_blocks(model: Backbone) -> list[Block]:
    """Random hidden states of `BLOCKS`."""
    generator = torch.Generator().manual_seed(0)
    width, like = model.width, model.model
    blocks, start = [], 0
    for columns in BLOCKS:
        hidden = torch.randn(1, columns, width, generator=generator)
        blocks.append(Block(hidden.to(like.device, like.dtype), start))
        start += columns
    return blocks


def run_block(
    model: Backbone, run_layer: Callable[..., Tensor], index: int, block: Block, cache: KVCache
) -> Tensor:
    """Run a block through one layer: (1, columns, width).

    Args:
        model: backbone, which gives rotations and masks.
        run_layer: `run_layer` of an executor.
        index: index of the layer, from 0.
        block: hidden states.
        cache: KV cache of the executor.
    """
    columns, start = block.hidden.shape[1], block.start
    rotations = {
        kind: tuple(part[0, start:][None] for part in rotation)
        for kind, rotation in model.rotations(start + columns).items()
    }
    masks = model.block_masks(columns, start)
    cache.set_slots(slice(None), start, start + columns)
    return run_layer(index, block.hidden, rotations, masks, cache)


def relative_error(ours: Tensor, stock: Tensor) -> float:
    """Largest difference, as a share of the largest stock value; shapes are equal."""
    return ((ours - stock).abs().max() / stock.abs().max()).item()
