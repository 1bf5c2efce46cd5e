"""Memory for the keys and values of batches."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

from torch import Tensor

#: columns by which a pooled buffer grows: few sizes can be reused by many batches
POOLED_COLUMN_STEP = 512
#: unused buffers that a pool keeps
MAX_SPARE_BUFFERS = 4


class KVBuffer:
    """Memory for the keys and values of a batch.

    Args:
        layers: number of layers.
        rows: number of rows.
        capacity: number of columns.

    Attributes:
        keys: of each layer, (rows, heads, capacity, d), or None before anything is stored.
        values: of each layer, (rows, heads, capacity, d), or None.
        replays: CUDA graphs that read and write this memory.
    """

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.replays: dict[Hashable, Any] = {}


class KVBufferPool:
    """Buffers that outlive a batch, so that CUDA graphs of their addresses stay valid.

    Args:
        layers: number of layers.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._spare: list[KVBuffer] = []
        self._lock = threading.Lock()

    def take(self, rows: int, capacity: int) -> KVBuffer:
        """A zeroed buffer of `rows` rows and at least `capacity` columns, for exclusive use."""
        with self._lock:
            del self._spare[:-MAX_SPARE_BUFFERS]
            fitting = [b for b in self._spare if b.rows == rows and b.capacity >= capacity]
            if not fitting:
                columns = -(-capacity // POOLED_COLUMN_STEP) * POOLED_COLUMN_STEP
                return KVBuffer(self.layers, rows, columns)
            buffer = min(fitting, key=lambda b: b.capacity)
            self._spare.remove(buffer)
        for stored in (*buffer.keys, *buffer.values):
            if stored is not None:
                stored.zero_()
        return buffer

    def give_back(self, buffer: KVBuffer) -> None:
        """Return a buffer.  The pool keeps the newest ones.

        The finalizer of a cache calls this, possibly in the middle of `take`, so it takes no lock.
        """
        self._spare.append(buffer)
