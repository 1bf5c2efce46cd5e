"""Hidden states that later steps read."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from eepolicy.model.kv_cache import Rows


class ColumnStates:
    """Stores hidden states by row and column: of deferred columns, or the inputs of a branch.

    Args:
        rows: number of stored rows.
        capacity: number of columns.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self._shape = (rows, capacity)
        self._hidden: Tensor | None = None  # (rows, capacity, width), allocated at the first use

    def write(self, rows: Rows, columns: slice, hidden: Tensor) -> None:
        """Store hidden states (rows, columns, width)."""
        if self._hidden is None:
            self._hidden = hidden.new_zeros((*self._shape, hidden.shape[2]))
        self._hidden[rows, columns] = hidden

    def read(self, rows: Rows, columns: slice) -> Tensor:
        """Stored hidden states: (rows, columns, width)."""
        assert self._hidden is not None
        return self._hidden[rows, columns]

    def keep(self, slots: Tensor) -> None:
        """Drop all other rows; `slots` (rows,) are the ones to keep."""
        self._shape = (len(slots), self._shape[1])
        if self._hidden is not None:
            self._hidden = self._hidden[slots]

    def grow(self, capacity: int) -> None:
        """Extend to more columns."""
        if self._hidden is not None:
            self._hidden = F.pad(self._hidden, (0, 0, 0, capacity - self._shape[1]))
        self._shape = (self._shape[0], capacity)
