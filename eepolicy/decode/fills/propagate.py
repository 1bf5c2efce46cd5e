"""Approximate fill: the exit's hidden state gives the missing keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eepolicy.decode.block import Block
from eepolicy.decode.fills.base import FILLS, FillBatch, KVFill


@FILLS.register
@dataclass(frozen=True)
class Propagate(KVFill):
    """Each layer above the exit computes keys and values from the exit's hidden state.

    The state propagation of CALM (arXiv 2207.07061, section 3.1); approximate.
    """

    name: ClassVar[str] = "propagate"
    usage: ClassVar[str] = "propagate"
    example: ClassVar[str] = "propagate"
    summary: ClassVar[str] = "approximate: skipped layers store keys and values of the exit's state"
    paper: ClassVar[str] = "CALM, arXiv 2207.07061"
    source: ClassVar[str] = "https://arxiv.org/abs/2207.07061"

    def on_exit(self, batch: FillBatch, block: Block) -> None:
        batch.store_kv(block, block.depth, batch.full_depth)
        batch.mark_computed(block)
