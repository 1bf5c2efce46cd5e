"""Positions of a batch: cache slots of rows, rotary embeddings, and attention masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.model.backbone import Backbone
from eepolicy.model.families import CHUNKED, FULL, Rotation
from eepolicy.model.kv_cache import Rows


class Positions:
    """Maps rows to cache slots and columns to positions, and builds masks.

    Prompts are padded on the left, so the newest positions of all rows share a column.  Rejected
    drafts leave columns that no row attends to.

    Args:
        backbone: model that runs the batch.
        padding: number of padding columns of each row.
        capacity: number of columns.

    Attributes:
        padding: number of padding columns of each row.
        stored_rows: rows in the order of their cache slots.
        mask_depths: depths above which some columns are masked out.
    """

    def __init__(self, backbone: Backbone, padding: Sequence[int], capacity: int) -> None:
        self.backbone = backbone
        self.padding = list(padding)
        self.capacity = capacity
        self.stored_rows = list(range(len(self.padding)))
        self.mask_depths: set[int] = set()
        self._device = backbone.device  # the property costs as much as a small product
        self._on_device: dict[tuple[int, ...], Tensor] = {}
        self._rotations = backbone.rotations(capacity)
        self._columns = torch.arange(capacity, device=self._device)
        #: position of each column, (stored rows, capacity), negative in the padding; None where
        #: columns are positions
        self._shifted: Tensor | None = None
        self._shift()
        kinds = set(backbone.parts.attention)
        biased = backbone.parts.key_bias is not None
        self._always_masked = biased or kinds != {FULL}
        self._reads_positions = biased or CHUNKED in kinds
        self._unmasked: dict[str, Tensor | None] = dict.fromkeys(backbone.parts.attention)
        #: exit depth of each column, (rows, capacity), once columns are masked out
        self._visible_depth: Tensor | None = None
        #: columns of rejected drafts, (rows, capacity) of bool, once there are any
        self._dropped: Tensor | None = None
        #: the same on the host, by row
        self._dropped_columns: dict[int, set[int]] = {}

    def tensor(self, numbers: list[int]) -> Tensor:
        """Integers on the device: (numbers,).

        A copy to the device waits for all work in its queue, so tensors are reused.
        """
        tensor = self._on_device.get(tuple(numbers))
        if tensor is None:
            tensor = torch.tensor(numbers, device=self._device)
            self._on_device[tuple(numbers)] = tensor
        return tensor

    def slots(self, rows: list[int]) -> Tensor:
        """Cache slots of rows: (rows,)."""
        return self.tensor([self.stored_rows.index(row) for row in rows])

    def index(self, rows: list[int]) -> Rows:
        """Cache slots of rows as a slice if they are adjacent, else (rows,)."""
        if self.needs_gather(rows):
            return self.slots(rows)
        first = self.stored_rows.index(rows[0])
        return slice(first, first + len(rows))

    def needs_gather(self, rows: list[int]) -> bool:
        """Whether rows, in ascending order, are not adjacent in the cache."""
        return self.stored_rows.index(rows[-1]) - self.stored_rows.index(rows[0]) >= len(rows)

    def grow(self, capacity: int) -> None:
        """Extend to more columns."""
        extra = capacity - self.capacity
        self._rotations = self.backbone.rotations(capacity)
        self._columns = torch.arange(capacity, device=self._device)
        self._shift()
        if self._visible_depth is not None:
            self._visible_depth = F.pad(self._visible_depth, (0, extra), value=self.backbone.depth)
        if self._dropped is not None:
            self._dropped = F.pad(self._dropped, (0, extra))
        self.capacity = capacity

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        slots = self.slots(rows)
        self.stored_rows = list(rows)
        self._shift()
        if self._visible_depth is not None:
            self._visible_depth = self._visible_depth[slots]
        if self._dropped is not None:
            self._dropped = self._dropped[slots]

    def reuse_columns(self, columns: int) -> None:
        """All rows drop the columns from `columns` on, which the next tokens use again."""
        if self._dropped is not None:
            self._dropped[:, columns:] = False
            for row, dropped in self._dropped_columns.items():
                self._dropped_columns[row] = {column for column in dropped if column < columns}

    def drop(self, row: int, start: int, stop: int) -> None:
        """One row drops columns that the other rows keep: no position attends to them."""
        if self._dropped is None:
            shape = (len(self.stored_rows), self.capacity)
            self._dropped = torch.zeros(shape, dtype=torch.bool, device=self._device)
        self._dropped[self.stored_rows.index(row), start:stop] = True
        self._dropped_columns.setdefault(row, set()).update(range(start, stop))

    def own_columns(self, row: int, start: int, stop: int) -> list[int]:
        """The columns in a range without those that a row has dropped."""
        dropped = self._dropped_columns.get(row, ())
        return [column for column in range(start, stop) if column not in dropped]

    def mask_out(self, rows: list[int], column: int, depth: int) -> None:
        """Later positions do not attend to a column in the layers above `depth`."""
        if self._visible_depth is None:
            shape = (len(self.stored_rows), self.capacity)
            self._visible_depth = torch.full(shape, self.backbone.depth, device=self._device)
        self._visible_depth[self.slots(rows), column] = depth
        self.mask_depths.add(depth)

    def positions(self, rows: list[int], start: int, stop: int) -> Tensor:
        """Positions of columns: (rows, columns), or (1, columns) where no row is shifted."""
        if self.backbone.parts.max_positions is not None:
            self._check_length(rows, stop)
        if self._dropped is not None:
            return (self._own(rows, stop).cumsum(1) - 1)[:, start:].clamp(min=0)
        if self._shifted is None:
            return self._columns[None, start:stop]
        return self._shifted[self.index(rows), start:stop].clamp(min=0)

    def are_consecutive(self, rows: list[int], columns: slice) -> bool:
        """Whether the column before each of some columns is the position before it."""
        return self._dropped is None and columns.start > max(self.padding[row] for row in rows)

    def columns_before(self, rows: list[int], columns: slice) -> Tensor:
        """The column of the position before each column of some rows, -1 where there is none.

        Returns:
            (rows, columns).
        """
        numbers, own = (
            torch.arange(columns.stop, device=self._device),
            self._own(rows, columns.stop),
        )
        newest = torch.where(own, numbers, -1).cummax(1).values  # newest position up to a column
        before = F.pad(newest, (1, 0), value=-1)
        return before[:, columns]

    def rotations(self, rows: list[int], start: int, stop: int) -> dict[str, Rotation]:
        """What layers read about the positions of columns, by kind of attention.

        Returns:
            Cosines and sines in most families, (rows or 1, columns, d) each.
        """
        if self._shifted is None and self._dropped is None:
            columns = slice(start, stop)
            return {
                kind: tuple(part[0, columns][None] for part in rotation)
                for kind, rotation in self._rotations.items()
            }
        positions = self.positions(rows, start, stop)
        return {
            kind: tuple(part[0][positions] for part in rotation)
            for kind, rotation in self._rotations.items()
        }

    def masks(self, rows: list[int], start: int, stop: int, layer: int) -> dict[str, Tensor | None]:
        """Attention masks of columns at a layer, by kind; see `Backbone.block_masks`."""
        valid, positions = None, None
        if self._shifted is not None:
            shifted = self._shifted[self.index(rows), :stop]
            valid = shifted >= 0
            if self._reads_positions:  # these count from the first position of a row
                positions = shifted.clamp(min=0)
        if self._dropped is not None:
            kept = ~self._dropped[self.index(rows), :stop]
            valid = kept if valid is None else valid & kept
            positions = (valid.cumsum(1) - 1).clamp(min=0)
        if self._visible_depth is not None and min(self.mask_depths) <= layer:
            visible = self._visible_depth[self.index(rows), :stop] > layer
            valid = visible if valid is None else valid & visible
        if valid is None and stop - start == 1 and not self._always_masked:
            return self._unmasked  # a single column that sees all others
        return self.backbone.block_masks(stop - start, start, valid, positions)

    def _check_length(self, rows: list[int], stop: int) -> None:
        """Refuse more positions than the model has."""
        if self._dropped is None:
            tokens = stop - min(self.padding[row] for row in rows)
        else:
            tokens = int(self._own(rows, stop).sum(1).max())
        self.backbone.check_length(tokens)

    def _shift(self) -> None:
        """Set the position of each column of the stored rows."""
        padding = [self.padding[row] for row in self.stored_rows]
        self._shifted = self._columns - self.tensor(padding)[:, None] if any(padding) else None

    def _own(self, rows: list[int], stop: int) -> Tensor:
        """The columns before `stop` that are positions of some rows: (rows, columns) of bool."""
        index = self.index(rows)
        if self._shifted is None:
            own = torch.ones((len(rows), stop), dtype=torch.bool, device=self._device)
        else:
            own = self._shifted[index, :stop] >= 0
        return own if self._dropped is None else own & ~self._dropped[index, :stop]
