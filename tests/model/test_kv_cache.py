"""Pooled buffers of keys and values, which outlive a batch."""

from __future__ import annotations

import gc

import torch
from hypothesis import given
from hypothesis import strategies as st

from eepolicy.model.kv_buffers import MAX_SPARE_BUFFERS, POOLED_COLUMN_STEP, KVBufferPool
from eepolicy.model.kv_cache import KVCache

NEW = torch.arange(1, 2 * 2 * 3 * 4 + 1, dtype=torch.float).view(2, 2, 3, 4)


def filled(pool: KVBufferPool) -> KVCache:
    cache = KVCache(1, 2, 5, pool)
    cache.set_slots(slice(0, 2), 0, 3)
    cache.update(NEW, -NEW, 0)
    return cache


def test_a_returned_buffer_is_reused_and_zeroed():
    pool = KVBufferPool(1)
    cache = filled(pool)
    buffer, place = cache.buffer, cache.layer(0, 3)[0].data_ptr()
    beside = filled(pool)
    assert beside.buffer is not buffer  # another cache uses the first one
    del cache
    gc.collect()
    again = KVCache(1, 2, 9, pool)
    assert again.buffer is buffer
    assert again.layer(0, 3)[0].data_ptr() == place
    for stored in again.layer(0, POOLED_COLUMN_STEP):
        assert not stored.any()


def test_remaining_rows_move_to_a_buffer_of_their_size():
    pool = KVBufferPool(1)
    cache = filled(pool)
    before = cache.buffer
    cache.keep(torch.tensor([1]), 3)
    assert cache.buffer.rows == 1
    assert cache.capacity == 5  # the requested capacity
    keys, values = cache.layer(0, 3)
    assert torch.equal(keys, NEW[1:])
    assert torch.equal(values, -NEW[1:])
    assert pool._spare == [before]
    del cache
    gc.collect()
    assert pool._spare == [before]  # the smaller buffer does not return to the pool


@given(
    rows=st.integers(1, 6),
    drops=st.lists(st.sets(st.integers(0, 5)), max_size=4),
    columns=st.integers(1, 9),
    pooled=st.booleans(),
)
def test_the_rows_that_continue_keep_their_columns(rows, drops, columns, pooled):
    """Against indexing, with columns that are stored between the drops."""
    cache = KVCache(2, rows, 3, KVBufferPool(2) if pooled else None)
    keys = torch.zeros(2, rows, 2, 0, 4)  # of both layers
    for dropped in (set(), *drops):
        kept = [row for row in range(keys.shape[1]) if row not in dropped]
        if not kept:
            break
        if dropped:
            cache.keep(torch.tensor(kept), keys.shape[3])
        new = torch.randn(2, len(kept), 2, columns, 4)
        keys = torch.cat([keys[:, kept], new], 3)
        stop = keys.shape[3]
        cache.grow(stop)
        cache.set_slots(slice(0, len(kept)), stop - columns, stop)
        for layer in range(2):
            cache.update(new[layer], -new[layer], layer)
            expected = torch.nn.functional.pad(keys[layer], (0, 0, 0, cache.capacity - stop))
            stored = cache.layer(layer, cache.capacity)
            assert torch.equal(stored[0], expected)  # later columns are zeros
            assert torch.equal(stored[1], -expected)
        assert cache.rows == len(kept)


def test_a_buffer_made_in_inference_mode_is_reused_outside_it():
    pool = KVBufferPool(1)
    with torch.inference_mode():
        cache = filled(pool)
        buffer = cache.buffer
        del cache
        gc.collect()
    again = filled(pool)
    assert again.buffer is buffer
    assert torch.equal(again.layer(0, 3)[0], NEW)


def test_a_cache_grows_only_beyond_the_capacity_of_its_buffer():
    pool = KVBufferPool(1)
    cache = filled(pool)
    before = cache.buffer
    cache.grow(POOLED_COLUMN_STEP)
    assert cache.buffer is before
    cache.grow(POOLED_COLUMN_STEP + 1)
    assert cache.capacity == 2 * POOLED_COLUMN_STEP
    assert torch.equal(cache.layer(0, 3)[0], NEW)


def test_the_pool_keeps_only_the_newest_buffers():
    pool = KVBufferPool(1)
    caches = [KVCache(1, rows, 5, pool) for rows in range(1, MAX_SPARE_BUFFERS + 3)]
    newest = [cache.buffer for cache in caches[-MAX_SPARE_BUFFERS + 1 :]]
    while caches:
        del caches[0]
    gc.collect()
    pool.take(100, 5)
    assert len(pool._spare) == MAX_SPARE_BUFFERS
    assert all(buffer in pool._spare for buffer in newest)
