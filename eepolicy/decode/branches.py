"""Runs the layers of exit heads: branches after an exit, and the drafter at depth 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.block import Block
from eepolicy.decode.column_states import ColumnStates
from eepolicy.decode.positions import Positions
from eepolicy.decode.recorder import Recorder
from eepolicy.errors import EepolicyError
from eepolicy.heads.drafter import DrafterHead
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.kv_cache import KVCache
from eepolicy.trace import TokenCost


class BranchBatch(Protocol):
    """What `Branches` uses of a `Batch`; see there."""

    backbone: Backbone
    options: BatchOptions
    executor: LayerExecutor
    recorder: Recorder | None
    positions: Positions
    cache: KVCache
    columns: int
    num_computed: list[list[int]]

    @property
    def full_depth(self) -> int:
        """Number of layers of the model."""

    @property
    def num_reply_columns(self) -> int:
        """Number of columns from the first step on."""

    def cost(self, row: int) -> TokenCost:
        """Computation of a row in this step."""

    def own_mask(self, block: Block) -> Tensor | None:
        """Columns of a block that each row computes."""

    def store(self, states: ColumnStates, block: Block, columns: slice) -> None:
        """Store the columns that each row of a block computes."""


class Branches:
    """The layers that exit heads own, in one batch.

    The layers of a head are further layers of the backbone, with slots of their own in the KV
    cache.  A readout runs them on the columns that have not run them yet, as one block.

    A branch at depth *d* reads the states after *d* layers.  The drafter reads the embedding of a
    token and the full model's state at the position before.  Where the full model has not run, it
    reads its own state there, and the column runs again once the full model has (EAGLE, arXiv
    2401.15077).

    It keeps no reference to its batch: a circle would delay the return of the batch's KV buffer.

    Args:
        depths: depths at which heads with layers may be read; 0 is the drafter.
        full_depth: number of layers of the model.
        rows: number of rows.
        capacity: number of columns.

    Attributes:
        states: stored inputs, by depth: states after so many layers, where 0 is the embedding.
    """

    def __init__(self, depths: Sequence[int], full_depth: int, rows: int, capacity: int) -> None:
        self.depths = frozenset(depths)
        stored = {*depths, full_depth} if 0 in depths else {*depths}
        self.states = {depth: ColumnStates(rows, capacity) for depth in stored}
        self._features = ColumnStates(rows, capacity)  # states after the drafter
        #: columns of each row that the drafter has run, on its own states where need be
        self._num_drafted = [0] * rows

    def store(self, batch: BranchBatch, depth: int, block: Block) -> None:
        """Store the states of a block after `depth` layers, if a head reads them."""
        if depth in self.states:
            columns = slice(batch.columns - block.hidden.shape[1], batch.columns)
            batch.store(self.states[depth], block, columns)

    def keep(self, slots: Tensor) -> None:
        """Drop all other rows; `slots` (rows,) are the ones to keep."""
        for states in (*self.states.values(), self._features):
            states.keep(slots)

    def grow(self, capacity: int) -> None:
        """Extend to more columns."""
        for states in (*self.states.values(), self._features):
            states.grow(capacity)

    def drop_columns(self, rows: list[int], columns: int) -> None:
        """Some rows keep the first `columns` columns only."""
        for row in rows:
            self._num_drafted[row] = min(self._num_drafted[row], columns)

    def run(self, batch: BranchBatch, rows: list[int], depth: int) -> Tensor:
        """Run the layers of a head on the columns that have not run them yet.

        Args:
            batch: batch that decodes.
            rows: rows of the batch, ascending.  They have run `depth` layers on all columns.
            depth: depth of the head.

        Returns:
            (rows, columns, width): states after the head's layers, the newest column last.

        Raises:
            EepolicyError: the inputs of the head are not stored.
        """
        if depth not in self.depths:
            raise EepolicyError(
                f"the exit head at depth {depth} is a branch, which attends to all earlier "
                f"positions; {batch.options.fill!r} does not keep them: use fill='catch_up'"
            )
        if depth == 0:
            return self._draft(batch, rows)
        first = batch.backbone.branches[depth].start
        stop = batch.columns
        # a second readout of the newest column computes it again
        num_new = [max(1, stop - batch.num_computed[row][first]) for row in rows]
        columns = slice(stop - max(num_new), stop)
        hidden = self.states[depth].read(batch.positions.index(rows), columns)
        hidden = self._run_layers(batch, depth, Block(rows, hidden, num_new), columns)
        self._mark_computed(batch, rows, depth, stop)
        return hidden

    def _run_layers(self, batch: BranchBatch, depth: int, block: Block, columns: slice) -> Tensor:
        """Run the layers of a head on some columns: (rows, columns, width)."""
        rows, span = block.rows, batch.backbone.branches[depth]
        index = batch.positions.index(rows)
        masks = batch.positions.masks(rows, columns.start, columns.stop, depth)
        rotations = batch.positions.rotations(rows, columns.start, columns.stop)
        batch.cache.set_slots(index, columns.start, columns.stop, batch.own_mask(block))
        hidden = batch.executor.run_layers(
            span.start, span.stop, block.hidden, rotations, masks, batch.cache
        )
        own_columns = [  # columns of rejected drafts in between belong to no position
            batch.positions.own_columns(row, columns.stop - new, columns.stop)
            for row, new in zip(rows, block.num_new, strict=True)
        ]
        for row, own in zip(rows, own_columns, strict=True):
            cost = batch.cost(row)
            cost.layer_calls += len(span)
            cost.branch_calls += len(span)
            cost.layer_positions += min(len(own), batch.num_reply_columns) * len(span)
        if batch.recorder is not None and depth:  # the drafter's states are of no depth
            states = [
                hidden[i, [column - columns.start for column in own]]
                for i, own in enumerate(own_columns)
            ]
            batch.recorder.record_branch(rows, [*map(len, own_columns)], depth, states)
        return hidden

    def _mark_computed(self, batch: BranchBatch, rows: list[int], depth: int, columns: int) -> None:
        """The first columns of some rows no longer need the layers of a head."""
        span = batch.backbone.branches[depth]
        for row in rows:
            batch.num_computed[row][span.start : span.stop] = [columns] * len(span)

    def _draft(self, batch: BranchBatch, rows: list[int]) -> Tensor:
        """Run the drafter up to the newest column: (rows, 1, width)."""
        first = batch.backbone.branches[0].start
        newest = batch.columns - 1
        # columns whose position before has run all layers, by row
        known = {row: min(self._num_full(batch, row), newest) + 1 for row in rows}
        for stop in sorted({*known.values()}):
            group = [row for row in rows if known[row] == stop]
            new = [stop - batch.num_computed[row][first] for row in group]
            self._draft_columns(batch, [r for r, n in zip(group, new, strict=True) if n > 0], stop)
        for column in range(min(self._num_drafted[row] for row in rows), newest + 1):
            self._draft_column(batch, [r for r in rows if self._num_drafted[r] <= column], column)
        index = batch.positions.index(rows)
        return self._features.read(index, slice(newest, newest + 1))

    def _num_full(self, batch: BranchBatch, row: int) -> int:
        """Number of columns of a row that have run all layers of the model."""
        return batch.num_computed[row][batch.full_depth - 1]

    def _draft_columns(self, batch: BranchBatch, rows: list[int], stop: int) -> None:
        """Run the drafter on the columns before `stop`, with the full model's states."""
        if not rows:
            return
        first = batch.backbone.branches[0].start
        num_new = [stop - batch.num_computed[row][first] for row in rows]
        columns = slice(stop - max(num_new), stop)
        hidden = self._run_layers(
            batch, 0, Block(rows, self._inputs(batch, rows, columns), num_new), columns
        )
        batch.store(self._features, Block(rows, hidden, num_new), columns)
        self._mark_computed(batch, rows, 0, stop)
        for row in rows:
            self._num_drafted[row] = stop

    def _draft_column(self, batch: BranchBatch, rows: list[int], column: int) -> None:
        """Run the drafter on one column, with its own state at the position before.

        The column is not marked as computed: it runs again once the full model has run at the
        position before.
        """
        columns = slice(column, column + 1)
        inputs = self._inputs(batch, rows, columns, self._features)
        hidden = self._run_layers(batch, 0, Block(rows, inputs, [1] * len(rows)), columns)
        self._features.write(batch.positions.index(rows), columns, hidden)
        for row in rows:
            self._num_drafted[row] = column + 1

    def _inputs(
        self,
        batch: BranchBatch,
        rows: list[int],
        columns: slice,
        features: ColumnStates | None = None,
    ) -> Tensor:
        """What the drafter reads at some columns: (rows, columns, width).

        Args:
            batch: batch that decodes.
            rows: rows of the batch.
            columns: the columns.
            features: states at the positions before; the full model's by default.
        """
        index = batch.positions.index(rows)
        drafter = batch.backbone.heads.at(0)
        assert isinstance(drafter, DrafterHead)
        embedding = self.states[0].read(index, columns)
        source = self.states[batch.full_depth] if features is None else features
        if batch.positions.are_consecutive(rows, columns):
            before = slice(columns.start - 1, columns.stop - 1)
            return drafter.inputs(source.read(index, before), embedding)
        # (rows, columns): the position before, where there is one
        positions = batch.positions.columns_before(rows, columns)
        states = source.read(index, slice(0, columns.stop - 1)) if columns.stop > 1 else embedding
        taken = positions.clamp(min=0)[..., None].expand_as(embedding)
        previous = states.gather(1, taken).masked_fill(positions[..., None] < 0, 0.0)
        return drafter.inputs(previous, embedding)
