"""Large arrays that are used again once nobody refers to them, because memory touched for the first time is slow."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64


class BufferPool:
    """Hands out uninitialized arrays over blocks of memory that it keeps.

    A block is free when no array over it is alive: every numpy view and every tensor made by `torch.from_numpy` holds
    a reference to the block, so its count tells. Zeroing fresh pages costs as much as reading a row group, and half
    of a loader's time went there without this. Memory: the most that was ever in use at once, and never more than
    `spare` free blocks.
    """

    def __init__(self, spare: int = 8) -> None:
        self._spare = spare
        self._lock = threading.Lock()
        self._blocks: list[NDArray[np.uint8]] = []
        # What `_references` finds for a block that only a list refers to; it differs between versions of Python.
        self._idle = _references([np.empty(1, np.uint8)])[0]

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An uninitialized array whose memory is shared with no array alive.

        Its first byte lies on a cache line: how a library sums may depend on that, and equal rows are to give
        equal sums.
        """
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        with self._lock:
            free = self._free()
            fitting = [block for block in free if size <= len(block) - ALIGNMENT <= 2 * size + 4096]
            if fitting:
                block = min(fitting, key=len)
            else:
                for _ in range(len(free) - self._spare + 1):
                    self._forget(free.pop(0))
                block = np.empty(size + ALIGNMENT, np.uint8)
                self._blocks.append(block)
            start = -block.ctypes.data % ALIGNMENT
            return block[start : start + size].view(kind).reshape(shape)

    def _free(self) -> list[NDArray[np.uint8]]:
        counts = _references(self._blocks)
        return [block for block, count in zip(self._blocks, counts, strict=True) if count == self._idle]

    def _forget(self, block: NDArray[np.uint8]) -> None:
        self._blocks = [kept for kept in self._blocks if kept is not block]


def _references(blocks: list[NDArray[np.uint8]]) -> list[int]:
    return [sys.getrefcount(block) for block in blocks]
