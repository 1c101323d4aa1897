from __future__ import annotations

import tracemalloc

import numpy as np
import torch

from pipeline.buffers import BufferPool


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_only_when_no_view_or_tensor_of_it_is_alive():
    pool = BufferPool()
    first = pool.take((30, 4), np.int32)
    at = address(first)
    view = first[2:, 1:]
    tensor = torch.from_numpy(view)[:, :2]
    del first
    assert address(pool.take((30, 4), np.int32)) != at
    del view
    assert address(pool.take((30, 4), np.int32)) != at
    del tensor
    assert address(pool.take((30, 4), np.float32)) == at


def test_two_arrays_alive_never_share_memory():
    pool = BufferPool(spare=3)
    rng = np.random.default_rng(0)
    alive: list[tuple[np.ndarray, int]] = []
    for number in range(500):
        array = pool.take((int(rng.integers(1, 50)), 7), np.int32)
        array[:] = number
        alive.append((array, number))
        if rng.random() < 0.6:
            alive.pop(int(rng.integers(len(alive))))
        assert all((array == written).all() for array, written in alive)


def test_spare_memory_is_bounded():
    """Each array is longer than all before it, so that none of their memory can be used again."""
    pool = BufferPool(spare=3)
    tracemalloc.start()
    try:
        for number in range(30):
            pool.take((1_000_000 + 10_000 * number,), np.uint8)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 4 * 1_300_000


def test_shapes_and_types():
    pool = BufferPool()
    assert pool.take((3, 5), np.float32).shape == (3, 5)
    assert pool.take((3, 5), np.float32).dtype == np.float32
    assert pool.take((0, 5), np.int32).shape == (0, 5)
    assert pool.take((2, 3), np.int64).flags["C_CONTIGUOUS"]


def test_arrays_begin_on_a_cache_line():
    pool = BufferPool()
    alive = [pool.take((size, 3), np.int32) for size in range(1, 50)]
    assert all(address(array) % 64 == 0 for array in alive)
