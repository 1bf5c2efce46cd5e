"""Approximate fill: missing keys and values are masked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eepolicy.decode.block import Block
from eepolicy.decode.fills.base import FILLS, FillBatch, KVFill


@FILLS.register
@dataclass(frozen=True)
class Mask(KVFill):
    """No later position attends to an exited position in the layers above its exit; approximate."""

    name: ClassVar[str] = "mask"
    usage: ClassVar[str] = "mask"
    example: ClassVar[str] = "mask"
    summary: ClassVar[str] = "approximate: no position attends to missing keys and values"

    def on_exit(self, batch: FillBatch, block: Block) -> None:
        batch.mask_out(block, block.depth)
        batch.mark_computed(block)
