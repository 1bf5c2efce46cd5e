"""KVBufferPool of keys and values that outlive a batch."""

from __future__ import annotations

import gc

import torch

from eepolicy.model.kv_cache import LASTING_STEP, SPARE, KVBufferPool, KVCache

NEW = torch.arange(1, 2 * 2 * 3 * 4 + 1, dtype=torch.float).view(2, 2, 3, 4)


def filled(rooms: KVBufferPool) -> KVCache:
    cache = KVCache(1, 2, 5, rooms)
    cache.set_slots(slice(0, 2), 0, 3)
    cache.update(NEW, -NEW, 0)
    return cache


def test_a_room_is_used_again_and_is_empty_then():
    rooms = KVBufferPool(1)
    cache = filled(rooms)
    buffer, place = cache.buffer, cache.layer(0, 3)[0].data_ptr()
    beside = filled(rooms)
    assert beside.buffer is not buffer  # it is taken
    del cache
    gc.collect()
    again = KVCache(1, 2, 9, rooms)
    assert again.buffer is buffer
    assert again.layer(0, 3)[0].data_ptr() == place
    for held in again.layer(0, LASTING_STEP):
        assert not held.any()


def test_rows_that_stay_move_to_a_room_of_their_own():
    rooms = KVBufferPool(1)
    cache = filled(rooms)
    before = cache.buffer
    cache.keep(torch.tensor([1]), 3)
    assert cache.buffer.rows == 1
    assert cache.capacity == 5  # as was inputs for
    keys, values = cache.layer(0, 3)
    assert torch.equal(keys, NEW[1:])
    assert torch.equal(values, -NEW[1:])
    assert rooms._spare == [before]
    del cache
    gc.collect()
    assert rooms._spare == [before]  # what was made for few rows is not kept


def test_what_inference_mode_made_is_used_behind_it():
    rooms = KVBufferPool(1)
    with torch.inference_mode():
        cache = filled(rooms)
        buffer = cache.buffer
        del cache
        gc.collect()
    again = filled(rooms)
    assert again.buffer is buffer
    assert torch.equal(again.layer(0, 3)[0], NEW)


def test_more_room_is_taken_only_where_it_lacks():
    rooms = KVBufferPool(1)
    cache = filled(rooms)
    before = cache.buffer
    cache.grow(LASTING_STEP)
    assert cache.buffer is before
    cache.grow(LASTING_STEP + 1)
    assert cache.capacity == 2 * LASTING_STEP
    assert torch.equal(cache.layer(0, 3)[0], NEW)


def test_few_pool_are_kept():
    rooms = KVBufferPool(1)
    caches = [KVCache(1, rows, 5, rooms) for rows in range(1, SPARE + 3)]
    newest = [cache.buffer for cache in caches[-SPARE + 1 :]]
    while caches:
        del caches[0]
    gc.collect()
    rooms.take(100, 5)
    assert len(rooms._spare) == SPARE
    assert all(buffer in rooms._spare for buffer in newest)
