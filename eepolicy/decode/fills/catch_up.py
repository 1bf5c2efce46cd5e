"""Exact fill: positions stay pending and catch up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eepolicy.decode.block import Block
from eepolicy.decode.fills.base import FILLS, FillBatch, KVFill


@FILLS.register
@dataclass(frozen=True)
class CatchUp(KVFill):
    """Keeps exited positions pending until a later position reaches their layer.

    The pending positions then run in front of it, as one block.  The cache becomes that of the full
    model on the same tokens (SPAR-K, section 2.3; the parallel decoding of FREE, arXiv 2310.05424).
    A row with more than `max_pending` pending positions runs to full depth at once.
    """

    name: ClassVar[str] = "catch_up"
    usage: ClassVar[str] = "catch_up"
    example: ClassVar[str] = "catch_up"
    summary: ClassVar[str] = "exact: a later, deeper position also runs the pending ones"
    paper: ClassVar[str] = "SPAR-K, arXiv 2603.09215"
    source: ClassVar[str] = "https://arxiv.org/abs/2603.09215"
    defers: ClassVar[bool] = True

    def on_exit(self, batch: FillBatch, block: Block) -> None:
        limit = batch.max_pending
        stay = [i for i, row in enumerate(block.rows) if batch.num_pending(row) <= limit]
        if len(stay) < len(block.rows):
            over = sorted({*range(len(block.rows))} - {*stay})
            batch.run(block.select(over), batch.full_depth)
        if stay:
            batch.defer(block.select(stay) if len(stay) < len(block.rows) else block)
