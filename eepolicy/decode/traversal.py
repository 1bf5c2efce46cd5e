"""Two orders of a step: readouts between the layers, or all layers before the first readout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from eepolicy.decode.batch import Batch
from eepolicy.decode.block import Block
from eepolicy.decode.readout import LazyReadout, ReadoutSource


@dataclass
class ReadoutGroup:
    """Rows of a step with the same candidate depths.

    Attributes:
        candidates: depths at which the policy may exit, below the limit of the rows.
        rows: indices of the rows in the step.
        vocab_ranges: half-open ranges of ids that are read out; empty for all ids.
        last: readout at the previous candidate depth.
    """

    candidates: tuple[int, ...]
    rows: list[int]
    vocab_ranges: Sequence[tuple[int, int]] = ()
    last: LazyReadout | None = None


class Traversal(ABC):
    """Takes the rows of a step through the layers."""

    @abstractmethod
    def readout(self, depth: int, group: ReadoutGroup) -> LazyReadout:
        """The readout of a group at a depth."""

    @abstractmethod
    def pending_states(self, rows: list[int]) -> dict[int, Tensor]:
        """Full-depth states of rows that ran all layers on more than their newest position.

        Args:
            rows: indices of the rows in the step.

        Returns:
            (columns, width) by index, oldest column first.
        """

    @abstractmethod
    def exit(self, rows: list[int]) -> None:
        """Rows exit at the depth of the last readout, by their indices in the step."""


class LayerwisePass(Traversal):
    """Runs layers only as far as the policy asks; exited rows leave the block or run on.

    Args:
        batch: batch that decodes.
        block: newest columns of the rows of the step.
    """

    def __init__(self, batch: Batch, block: Block) -> None:
        self.batch, self.block = batch, block
        self.rows = list(block.rows)
        self.in_block = list(range(len(block.rows)))  # index in the step of each row of the block
        self.exited: set[int] = set()

    def readout(self, depth: int, group: ReadoutGroup) -> LazyReadout:
        self.batch.run(self.block, depth)
        hidden = self.block.hidden[:, -1]
        if len(group.rows) < len(self.in_block):
            index = [self.in_block.index(row) for row in group.rows]
            hidden = hidden[torch.tensor(index, device=hidden.device)]
        read = self.batch.read
        if group.vocab_ranges:
            read = partial(read, vocab_ranges=group.vocab_ranges)
        rows = [self.rows[i] for i in group.rows]
        source = ReadoutSource(read, rows, self.batch.backbone.exit_probability)
        group.last = LazyReadout(depth, hidden, source, group.last)
        return group.last

    def pending_states(self, rows: list[int]) -> dict[int, Tensor]:
        index = {row: self.in_block.index(row) for row in rows}
        columns = {row: self.block.num_new[i] for row, i in index.items()}
        return {row: self.block.hidden[index[row], -n:] for row, n in columns.items() if n > 1}

    def exit(self, rows: list[int]) -> None:
        self.exited |= {*rows}
        staying = [i for i, row in enumerate(self.in_block) if row not in self.exited]
        if not staying:
            self.batch.exit(self.block)
            return
        leaving = [i for i in range(len(self.in_block)) if i not in staying]
        rule = self.batch.options.rebatch
        if rule.runs_on(self.block, staying, leaving, self.batch.positions):
            return
        self.batch.exit(self.block.select(leaving))
        self.block = self.block.select(staying)
        self.in_block = [self.in_block[i] for i in staying]


class FullThenSelect(Traversal):
    """Runs all layers before the first readout, for policies with `needs_full_pass`.

    Args:
        batch: batch that decodes.
        block: newest columns of the rows of the step.
        stops: depths that are read out, ascending.
    """

    def __init__(self, batch: Batch, block: Block, stops: list[int]) -> None:
        self.full_depth = batch.full_depth
        self.source = ReadoutSource(batch.read, list(block.rows), batch.backbone.exit_probability)
        self.states: dict[int, Tensor] = {}  # (rows, width) by depth
        for depth in sorted({*stops, self.full_depth}):
            batch.run(block, depth)
            self.states[depth] = block.hidden[:, -1]
        self.full = LazyReadout(self.full_depth, block.hidden[:, -1], self.source)
        _ = self.full.logits  # evaluated once for all rows

    def readout(self, depth: int, group: ReadoutGroup) -> LazyReadout:
        full = self.full.select(group.rows)
        if depth == self.full_depth:
            full.previous = group.last
            return full
        hidden = self.states[depth][torch.tensor(group.rows)]
        source = self.source.select(group.rows)
        group.last = LazyReadout(depth, hidden, source, group.last, full)
        return group.last

    def pending_states(self, rows: list[int]) -> dict[int, Tensor]:
        return {}  # every layer has run, so no position is pending

    def exit(self, rows: list[int]) -> None:
        """Every layer has run, so no layer is left to treat."""
