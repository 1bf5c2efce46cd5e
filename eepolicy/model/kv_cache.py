"""Keys and values of a batch, stored by column."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from eepolicy.model.kv_buffers import KVBuffer, KVBufferPool

#: columns by which a buffer of one batch grows
COLUMN_STEP = 64

#: rows of a batch: a slice where they are adjacent, else their indices (rows,)
Rows = slice | Tensor


def numbers_per_token(config: PreTrainedConfig) -> int:
    """Count the numbers in the keys and values of a token in a layer.

    Args:
        config: config of the decoder.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * size)


class StoreOnly(Exception):
    """Raised by the cache when keys and values are stored and the attention is not needed."""


class KVCache:
    """Keys and values in one preallocated buffer a layer.

    Stock attention layers take this object as `past_key_values`.  Before a layer runs, `set_slots`
    sets the rows and columns of the new keys and values.  The attention gets all columns up to the
    last of them.  Columns without stored values are zeros.

    Args:
        layers: number of layers.
        rows: number of rows.
        capacity: number of columns.
        pool: pool that the buffer comes from; without one the buffer belongs to this cache.

    Attributes:
        rows: number of rows.
        capacity: number of columns, possibly more than requested.
        buffer: memory of the keys and values.
        tables: tables of an executor that hold `addresses`, until these change.
    """

    rows: int
    capacity: int
    buffer: KVBuffer
    _keys: list[Tensor | None]
    _values: list[Tensor | None]

    def __init__(
        self, layers: int, rows: int, capacity: int, pool: KVBufferPool | None = None
    ) -> None:
        self._layers, self._pool = layers, pool
        self._lease: weakref.finalize[..., KVCache] | None = None
        self._addresses: NDArray[np.int64] | None = None
        self.tables: dict[Hashable, NDArray[np.int64]] = {}
        self._use_buffer(rows, capacity, pool)
        self._slots: tuple[Rows, int, int, Tensor | None] = (slice(None), 0, 0, None)
        self._store_only = False
        self._columns: Tensor | None = None  # (columns,), their indices
        #: copies of non-adjacent rows, reused by one layer after another
        self._gathered: dict[tuple[bool, torch.device, int, int], Tensor] = {}

    def set_slots(
        self,
        rows: Rows,
        start: int,
        stop: int,
        own: Tensor | None = None,
        store_only: bool = False,
    ) -> None:
        """Set where the next keys and values are stored.

        Args:
            rows: rows of the batch; indices (active,) where they are not adjacent.
            start: first column.
            stop: column after the last one.
            own: (active, columns) of bool, columns to write; the others keep their values.  None
                writes all columns.
            store_only: raise `StoreOnly` after storing, which skips the attention.
        """
        self._slots = (rows, start, stop, own)
        self._store_only = store_only

    @property
    def slots(self) -> tuple[Rows, int, int, Tensor | None]:
        """Rows, first column, stop and own columns of the last `set_slots`."""
        return self._slots

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer.  Stock attention layers call this.

        Args:
            keys: (active, heads, columns, d).
            values: (active, heads, columns, d).
            layer_idx: index of the layer.
            *args: ignored; stock caches take more arguments.
            **kwargs: ignored.

        Returns:
            Keys and values of the active rows up to the last column, (active, heads, stop, d) each.

        Raises:
            StoreOnly: `set_slots` was called with `store_only`.
        """
        self.open(layer_idx, keys, values)
        stored = (
            self._write(self._keys[layer_idx], keys, True),
            self._write(self._values[layer_idx], values, False),
        )
        if self._store_only:
            raise StoreOnly
        return stored

    def at(self, index: int) -> LayerKV:
        """The cache for a layer that stores at `index`, whatever index the layer has itself."""
        return LayerKV(self, index)

    def open(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Allocate memory for a layer without stored values.

        Args:
            index: index of the layer.
            keys: an example of its keys, (any, heads, any, d).
            values: an example of its values, (any, heads, any, d).
        """
        if self._keys[index] is None:
            self._keys[index], self._values[index] = self._empty(keys), self._empty(values)
            self._addresses, self.tables = None, {}

    def grow(self, capacity: int) -> None:
        """Extend the cache to at least `capacity` columns."""
        if capacity > self.capacity:
            self._move(slice(None), self.capacity, capacity)
        self._requested = capacity

    def keep(self, rows: Tensor, stop: int) -> None:
        """Drop all other rows, so that the remaining ones are adjacent.

        A buffer of this cache alone keeps its memory until it grows: with replies that end one
        after another, new buffers took a twentieth of the time.

        Args:
            rows: indices of the rows to keep, (rows,), ascending.
            stop: column after the last stored one.
        """
        if self._pool is not None:  # CUDA graphs belong to a buffer with its rows
            self._move(rows, stop, self._requested)
            return
        kept, self._gathered = len(rows), {}
        first = int((rows == torch.arange(kept, device=rows.device)).sum())  # rows before it stay
        for layers in (self._keys, self._values):
            for index, stored in enumerate(layers):
                if stored is not None:
                    moved = rows[first:].to(stored.device)
                    # the right side is a copy
                    stored[first:kept, :, :stop] = stored[moved, :, :stop]
                    layers[index] = stored[:kept]
        self.rows, self.buffer.rows = kept, kept
        self._addresses, self.tables = None, {}

    def layer(self, index: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer up to a column: (rows, heads, stop, d) each."""
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            raise IndexError(f"layer {index} has no stored keys and values yet")
        return keys[:, :, :stop], values[:, :, :stop]

    def view(self, index: int, min_columns: int = 0) -> tuple[Tensor, ...] | None:
        """Keys and values that a layer attends to, for a caller that writes the new columns itself.

        Args:
            index: index of the layer.
            min_columns: columns of the view where rows are adjacent and fewer are stored.

        Returns:
            Keys and values of the active rows, (active, heads, columns, d) each, where columns end
            at the last slot or at `min_columns`; indices of the new columns, (columns,); and, if
            `set_slots` got one, the mask of own columns, (active, columns).  None before anything
            is stored.  With `store_only`, columns before the new ones are undefined.
        """
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            return None
        own = self._slots[3]
        views = (
            self._read(keys, True, min_columns),
            self._read(values, False, min_columns),
            self.column_indices(keys.device),
        )
        return views if own is None else (*views, own)

    def addresses(self) -> NDArray[np.int64]:
        """Addresses of keys and values: (layers, 2), 0 for a layer without stored values.

        Adjacent rows of a `view` are at the same distance from them in all layers.
        """
        if self._addresses is None:
            pairs = zip(self._keys, self._values, strict=True)
            self._addresses = np.array(
                [[0 if t is None else t.data_ptr() for t in pair] for pair in pairs], np.int64
            )
        return self._addresses

    def column_indices(self, device: torch.device) -> Tensor:
        """Indices of the columns of the last `set_slots`: (columns,)."""
        _, start, stop, _ = self._slots
        if self._columns is None or len(self._columns) < stop:
            self._columns = torch.arange(max(stop, self.capacity), device=device)
        return self._columns[start:stop]

    def write_back(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Store the new columns of a `view`, which is a copy where rows are not adjacent."""
        rows, start, stop, _ = self._slots
        if isinstance(rows, Tensor):
            for stored, viewed in ((self._keys[index], keys), (self._values[index], values)):
                assert stored is not None
                stored[rows, :, start:stop] = viewed[:, :, start - stop :]

    def _use_buffer(self, rows: int, capacity: int, pool: KVBufferPool | None) -> None:
        """Switch to another buffer."""
        self._requested = capacity
        self.buffer = (
            KVBuffer(self._layers, rows, capacity) if pool is None else pool.take(rows, capacity)
        )
        self.rows, self.capacity = rows, self.buffer.capacity
        self._keys, self._values = self.buffer.keys, self.buffer.values
        self._addresses, self.tables = None, {}
        self._lease = None
        if pool is not None:
            self._lease = weakref.finalize(self, pool.give_back, self.buffer)
            self._lease.atexit = False

    def _move(self, rows: Rows, stop: int, capacity: int) -> None:
        """Copy some rows up to a column into another buffer.

        A smaller batch gets a buffer of its own: pooled buffers of many row counts would evict
        those that come back.
        """
        before, lease, self._gathered = self.buffer, self._lease, {}
        if isinstance(rows, slice):
            self._use_buffer(self.rows, capacity, self._pool)
        else:
            self._use_buffer(len(rows), capacity, None)
        for old_layers, new_layers in ((before.keys, self._keys), (before.values, self._values)):
            for index, old in enumerate(old_layers):
                if old is not None:
                    new = new_layers[index]
                    new = self._empty(old) if new is None else new
                    here = rows if isinstance(rows, slice) else rows.to(old.device)
                    new[:, :, :stop] = old[here, :, :stop]
                    new_layers[index] = new
        if lease is not None:
            lease()

    def _empty(self, like: Tensor) -> Tensor:
        """Zeros for a layer: (rows, heads, capacity, d).

        The columns of a head are contiguous, so attention reads them at once.  Measured on 900
        columns against contiguous heads of a column: 0.88 of a step's time, compiled 0.94; with
        eight rows after 500 columns 0.82 and 0.93.
        """
        shape = (self.rows, like.shape[1], _padded_capacity(self.capacity), like.shape[3])
        with torch.inference_mode(False):  # the buffer may outlive the caller's inference mode
            return like.new_zeros(shape)[:, :, : self.capacity]

    def _read(self, stored: Tensor, keys: bool, min_columns: int = 0) -> Tensor:
        """Keys, or values, of the active rows up to the last column: (active, heads, stop, d).

        Adjacent rows give a view.  Others give a copy that is valid until the next layer is read;
        with `store_only` it holds the new columns only.
        """
        rows, start, stop, _ = self._slots
        if isinstance(rows, slice):
            return _adjacent_rows(stored, rows, max(stop, min_columns))
        first = start if self._store_only else 0
        rows = rows.to(stored.device)  # layers may be on several devices
        key = keys, stored.device, stored.shape[1], stored.shape[3]
        if key not in self._gathered:
            self._gathered[key] = self._empty(stored)
        gathered = self._gathered[key][: len(rows), :, :stop]
        torch.index_select(stored[:, :, first:stop], 0, rows, out=gathered[:, :, first:])
        return gathered

    def _write(self, stored: Tensor | None, new: Tensor, keys: bool) -> Tensor:
        """Store new columns and return what `_read` gives: (active, heads, stop, d)."""
        assert stored is not None
        rows, start, stop, own = self._slots
        result = self._read(stored, keys)
        target = result[:, :, start - stop :]
        if own is not None:
            new = torch.where(own.to(new.device)[:, None, :, None], new, target)
        target.copy_(new)
        if isinstance(rows, Tensor):
            stored[rows.to(stored.device), :, start:stop] = target
        return result


class LayerKV:
    """The part of a cache that belongs to one layer.

    Args:
        cache: cache of the batch.
        index: index of the layer in the cache.
    """

    def __init__(self, cache: KVCache, index: int) -> None:
        self.cache, self.index = cache, index

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; see `KVCache.update`."""
        return self.cache.update(keys, values, self.index)


def _adjacent_rows(stored: Tensor, rows: slice, stop: int) -> Tensor:
    """Adjacent rows up to a column as one view: (active, heads, stop, d).

    The strides of the view do not depend on the capacity where there is one row, so that one
    compiled kernel serves all capacities.
    """
    first, row_stop, _ = rows.indices(stored.shape[0])
    row_stride, head_stride, column_stride, _ = stored.stride()
    return stored.as_strided(
        (row_stop - first, stored.shape[1], stop, stored.shape[3]),
        (row_stride if row_stop - first > 1 else column_stride, head_stride, column_stride, 1),
        first * row_stride,
    )


def _padded_capacity(capacity: int) -> int:
    """Columns to allocate: few sizes, and at least one column more than is used.

    A kernel compiled for a full buffer would not fit a buffer with spare columns.
    """
    return (capacity // COLUMN_STEP + 1) * COLUMN_STEP
