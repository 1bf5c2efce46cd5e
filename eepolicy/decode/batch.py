"""A batch of rows: runs layers, and stores which columns of each row have run which layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eepolicy.decode.batch_options import BatchOptions
from eepolicy.decode.block import Block
from eepolicy.decode.branches import Branches
from eepolicy.decode.column_states import ColumnStates
from eepolicy.decode.positions import Positions
from eepolicy.decode.recorder import Recorder
from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard, name_of
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import Rows
from eepolicy.trace import TokenCost


class Batch:
    """Rows that decode side by side; each position runs as many layers as the caller asks for.

    A *column* is an index in the padded rows.  Prompts are padded on the left, so the newest
    positions of all rows share a column.  A position that exits can stay *pending* at its depth.

    A position at layer *j* attends to all earlier positions, so pending ones are computed first.
    The computed columns of a layer are therefore always a prefix.  One length per (row, layer)
    suffices: `num_computed`.

    The layers of an exit head with a branch are further layers.  `run` stores the states that such
    a branch reads.  `read` runs the branch on the columns that it has not seen yet.

    Args:
        backbone: model that runs the batch.
        padding: number of padding columns before each prompt.
        capacity: expected number of columns; the batch grows beyond it.
        options: how the batch treats exits.
        executor: runs the layers; default: the backbone.
        recorder: records every layer that runs after the prompt.

    Attributes:
        num_computed: `num_computed[row][layer]`, number of columns that no longer need the layer.
        columns: number of columns.
        cache: keys and values.
        positions: cache slots, positions and masks of the rows.
        prefill_layer_calls: layer calls on prompts that ran apart from the first step.
    """

    def __init__(
        self,
        backbone: Backbone,
        padding: Sequence[int],
        capacity: int,
        options: BatchOptions | None = None,
        *,
        executor: LayerExecutor | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        executor = executor or backbone
        self.backbone = backbone
        self.options = options or BatchOptions()
        self.recorder = recorder
        self.capacity = capacity
        self.columns = self.prefill_layer_calls = 0
        self.num_computed = [[0] * backbone.num_layers for _ in padding]
        self.positions = Positions(backbone, padding, capacity)
        self.executor = executor
        self.cache = executor.open_cache(len(padding), capacity)
        self._pending = ColumnStates(len(padding), capacity)
        self._deferred: set[int] = set()  # rows that the fill keeps pending in this step
        self._reply_start: int | None = None  # column of the first token of a step
        self._costs = [TokenCost() for _ in padding]
        self.branches = Branches(self.options.branch_depths, backbone.depth, len(padding), capacity)

    @property
    def full_depth(self) -> int:
        """Number of layers of the model."""
        return self.backbone.depth

    @property
    def max_pending(self) -> int:
        """Largest number of pending positions of a row."""
        return self.options.max_pending or self.capacity

    def prefill(self, prompt: Tensor, rows: list[int] | None = None) -> None:
        """Run prompts at full depth.

        Args:
            prompt: ids (rows, tokens) or embeddings (rows, tokens, width), padded on the left.
            rows: rows of the batch, ascending; None for all of them.
        """
        if prompt.shape[1]:
            block = self.begin_block(prompt) if rows is None else self._append(prompt, rows)
            self.run(block, self.backbone.depth)
            self.prefill_layer_calls += self.backbone.depth

    def begin_block(self, tokens: Tensor) -> Block:
        """Append several tokens to every row; the caller runs the block to full depth.

        Args:
            tokens: ids (rows, tokens) or embeddings (rows, tokens, width).
        """
        return self._append(tokens, list(range(len(tokens))))

    def begin_step(self, tokens: Tensor, rows: list[int]) -> Block:
        """Append a token to some rows, possibly together with the prompt before it.

        All rows get a new column.  In a row that is not in `rows`, the column stays empty.  Such a
        row has ended: it may not be in a later step.

        Args:
            tokens: ids (rows, columns) or embeddings (rows, columns, width), the newest one last.
                The caller runs a block of several columns to full depth.
            rows: rows of the batch, ascending.
        """
        block = self._append(tokens, rows)
        prompt_positions = (tokens.shape[1] - 1) * self.backbone.depth
        if self._reply_start is None:
            self._reply_start = self.columns - 1
        for row in rows:  # positions of the prompt do not count for the token
            self._costs[row] = TokenCost(layer_positions=-prompt_positions)
        if self.recorder is not None:
            self.recorder.begin_token(rows, block.hidden)
        return block

    def run(self, block: Block, depth: int) -> None:
        """Run a block up to a depth, together with pending columns on the way."""
        rows = self.positions.index(block.rows)
        masks: dict[str, Tensor | None] = {}
        rotations: dict[str, Rotation] = {}
        width, layer = 0, block.depth
        while layer < depth:
            num_new = [self.columns - self.num_computed[row][layer] for row in block.rows]
            if num_new != block.num_new:
                self._prepend_pending(block, num_new, rows)
            start = self.columns - block.hidden.shape[1]
            if block.hidden.shape[1] != width:  # grows where pending columns join
                width = block.hidden.shape[1]
                masks = self.positions.masks(block.rows, start, self.columns, layer)
                rotations = self.positions.rotations(block.rows, start, self.columns)
            elif (
                layer in self.positions.mask_depths
            ):  # more columns are masked out from this layer on
                masks = self.positions.masks(block.rows, start, self.columns, layer)
            stop = self._layer_span_end(block.rows, layer, depth)
            self.cache.set_slots(rows, start, self.columns, self.own_mask(block))
            block.hidden = self.executor.run_layers(
                layer, stop, block.hidden, rotations, masks, self.cache
            )
            self._count(block.rows, num_new, layer, stop)
            if self.recorder is not None:
                self.recorder.record_layer(block.rows, num_new, stop, block.hidden)
            self.branches.store(self, stop, block)
            layer = stop
        block.depth = depth

    def read(
        self,
        hidden: Tensor,
        depth: int,
        rows: Sequence[int] = (),
        vocab_ranges: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """Logits of the newest column of some rows, or of any states at full depth.

        Args:
            hidden: (rows, width), states after `depth` layers.  At full depth, any number of them.
            depth: number of layers that ran.
            rows: rows of the batch, ascending; full depth ignores them.
            vocab_ranges: half-open ranges of ids to read; empty for all ids.

        Returns:
            (rows, vocab).

        Raises:
            EepolicyError: a branch reads this depth, and its inputs are not stored.
        """
        if depth in self.backbone.branches:
            hidden = self.run_branch([*rows], depth)[:, -1]
        return self.executor.logits(hidden, depth, vocab_ranges)

    def run_branch(self, rows: list[int], depth: int) -> Tensor:
        """Run the layers of an exit head on the new columns of some rows; see `Branches.run`."""
        return self.branches.run(self, rows, depth)

    def exit(self, block: Block) -> None:
        """Rows stop after `block.depth` layers; the fill treats the missing keys and values."""
        if block.depth < self.backbone.depth:
            self._deferred.clear()
            with Guard(self.options.fill, "on_exit"):
                self.options.fill.on_exit(self, block)
            for row in block.rows:
                if row not in self._deferred and self.num_pending(row):
                    raise EepolicyError(
                        f"{name_of(self.options.fill, 'on_exit')} left the layers above depth "
                        f"{block.depth} of a row: it must call batch.defer, batch.run or "
                        "batch.mark_computed"
                    )

    def defer(self, block: Block) -> None:
        """Keep the columns of a block pending at its depth."""
        columns = slice(self.columns - block.hidden.shape[1], self.columns)
        self.store(self._pending, block, columns)
        self._deferred.update(block.rows)

    def store(self, states: ColumnStates, block: Block, columns: slice) -> None:
        """Store the columns that each row of a block computes; `columns` are those of the block."""
        rows, own = self.positions.index(block.rows), self.own_mask(block)
        hidden = block.hidden
        if own is not None:
            hidden = torch.where(own[..., None], hidden, states.read(rows, columns))
        states.write(rows, columns, hidden)

    def store_kv(self, block: Block, first: int, stop: int) -> None:
        """Layers `first` to `stop` store keys and values of a block's newest column.

        The hidden state of the block stands in for the input of each layer.
        """
        rows = self.positions.index(block.rows)
        rotations = self.positions.rotations(block.rows, self.columns - 1, self.columns)
        hidden = block.hidden[:, -1:]
        for layer in range(first, stop):
            self.cache.set_slots(rows, self.columns - 1, self.columns, store_only=True)
            self.executor.fill_layer(layer, hidden, rotations, self.cache)
        for row in block.rows:
            self._costs[row].filled += stop - first

    def mask_out(self, block: Block, depth: int) -> None:
        """Later positions do not attend to a block's newest column in the layers above `depth`."""
        self.positions.mask_out(block.rows, self.columns - 1, depth)

    def mark_computed(self, block: Block) -> None:
        """The columns of a block need none of the layers above its depth any more."""
        for row in block.rows:
            skipped = self.backbone.depth - block.depth
            self.num_computed[row][block.depth : self.backbone.depth] = [self.columns] * skipped

    def flush(self, rows: list[int]) -> dict[int, Tensor]:
        """Run all pending columns of some rows to full depth.

        Rows whose newest columns are pending at the same depth run together.

        Args:
            rows: rows of the batch, ascending, whose newest column is pending.

        Returns:
            Hidden states at full depth of the columns that were pending, (columns, width), by row.
        """
        states: dict[int, Tensor] = {}
        by_depth: dict[int, list[int]] = {}
        for row in rows:
            depth = next(i for i, n in enumerate(self.num_computed[row]) if n < self.columns)
            by_depth.setdefault(depth, []).append(row)
        for depth, group in by_depth.items():
            num_new = [self.columns - self.num_computed[row][depth] for row in group]
            columns = slice(self.columns - max(num_new), self.columns)
            hidden = self._pending.read(self.positions.index(group), columns)
            block = Block(group, hidden, num_new, depth)
            self.run(block, self.backbone.depth)
            own = zip(group, block.hidden, block.num_new, strict=True)
            states |= {row: hidden[-count:] for row, hidden, count in own}
        return states

    def retire(self, active: list[int], dropped: dict[int, int]) -> None:
        """Drop rows that have ended, then columns of rejected drafts.

        Columns that all active rows drop are reused.  Others stay, and no position attends to them.

        Args:
            active: rows that continue, ascending.
            dropped: number of newest columns to drop, by row; these rows have run all layers.
        """
        if self.recorder is not None:
            self.recorder.drop(dropped)
        if not active:
            return
        if len(active) < len(self.positions.stored_rows):
            slots = self.positions.slots(active)
            self.cache.keep(slots, self.columns)
            self._pending.keep(slots)
            self.branches.keep(slots)
            self.positions.keep(active)
        if any(dropped.get(row, 0) for row in active):
            self._drop_columns(active, dropped)

    def cost(self, row: int) -> TokenCost:
        """Computation of a row since `begin_step`; readouts are not counted here."""
        return self._costs[row]

    @property
    def num_reply_columns(self) -> int:
        """Number of columns from the first step on; 1 before it."""
        return 1 if self._reply_start is None else self.columns - self._reply_start

    def num_pending(self, row: int) -> int:
        """Number of positions of a row that have not run all layers."""
        return self.columns - self.num_computed[row][self.backbone.depth - 1]

    def _append(self, tokens: Tensor, rows: list[int]) -> Block:
        """Add columns for new tokens and embed them."""
        start, width = self.columns, tokens.shape[1]
        self.columns += width
        if self.columns > self.capacity:
            self._grow(2 * self.columns)
        for row in rows:
            self._costs[row] = TokenCost()
        positions = self.positions.positions(rows, start, self.columns)
        block = Block(rows, self.backbone.embed(tokens, positions), [width] * len(rows))
        self.branches.store(self, 0, block)
        return block

    def _count(self, rows: list[int], num_new: list[int], layer: int, stop: int) -> None:
        """Count the layers from `layer` to `stop` on the new columns of some rows."""
        layers = stop - layer
        for row, own in zip(rows, num_new, strict=True):
            self.num_computed[row][layer:stop] = [self.columns] * layers
            self._costs[row].layer_calls += layers
            self._costs[row].layer_positions += own * layers

    def _layer_span_end(self, rows: list[int], layer: int, depth: int) -> int:
        """First layer after `layer` at which columns join, masks change, or recording is due."""
        stop = layer + 1
        if self.recorder is not None:
            return stop
        computed = [self.num_computed[row] for row in rows]
        while stop < depth and not (
            stop in self.positions.mask_depths or stop in self.branches.depths
        ):
            if any(row[stop] != row[layer] for row in computed):
                break
            stop += 1
        return stop

    def _prepend_pending(self, block: Block, num_new: list[int], rows: Rows) -> None:
        """Extend a block by pending columns, so that each row computes `num_new` columns."""
        width, before = max(num_new), block.hidden.shape[1]
        if width > before:
            columns = slice(self.columns - width, self.columns - before)
            block.hidden = torch.cat([self._pending.read(rows, columns), block.hidden], 1)
        if min(block.num_new) < before:  # padding columns become columns to compute
            columns = slice(self.columns - block.hidden.shape[1], self.columns)
            own = self.own_mask(block)
            assert own is not None
            pending = self._pending.read(rows, columns)
            block.hidden = torch.where(own[..., None], block.hidden, pending)
        block.num_new = num_new

    def own_mask(self, block: Block) -> Tensor | None:
        """Columns of a block that each row computes: (rows, columns); None where all are."""
        width = block.hidden.shape[1]
        if min(block.num_new) == width:
            return None
        num_new = self.positions.tensor(block.num_new).to(block.hidden.device)
        return torch.arange(width, device=num_new.device) >= width - num_new[:, None]

    def _grow(self, capacity: int) -> None:
        """Extend the batch to more columns."""
        self.cache.grow(capacity)
        self._pending.grow(capacity)
        self.branches.grow(capacity)
        self.positions.grow(capacity)
        self.capacity = capacity

    def _drop_columns(self, active: list[int], dropped: dict[int, int]) -> None:
        """Drop the newest columns of some rows."""
        common = min(dropped.get(row, 0) for row in active)
        self.columns -= common
        for row in active:
            self.num_computed[row] = [min(n, self.columns) for n in self.num_computed[row]]
        self.branches.drop_columns(active, self.columns)
        if common:
            self.positions.reuse_columns(self.columns)
        for row in active:
            extra = dropped.get(row, 0) - common
            if extra > 0:
                self.positions.drop(row, self.columns - extra, self.columns)
