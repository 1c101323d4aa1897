"""What producers hand to workers: a part and its bytes, with a bound on the bytes that wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipeline.preprocess.parts import Part
from pipeline.source import Block, ByteRange, new_memory


@dataclass
class Budget:
    """Bytes of one stream that wait for workers. One budget a stream: were it shared, parts that nobody works on
    yet could use it up while the workers wait for the next bytes of another stream."""

    limit: int
    used: int = 0
    free: list[np.ndarray] = field(default_factory=list)
    """Memory of blocks that were encoded: to ask for fresh memory each time costs more than to decompress into it."""

    def take(self) -> np.ndarray:
        try:
            return self.free.pop()
        except IndexError:
            return new_memory()


@dataclass
class Task:
    """A part on its way to a worker, with its bytes."""

    part: Part
    range: ByteRange | None
    """Where the lines lie in a plain local file; else they come through `queue`."""
    queue: deque[Block] = field(default_factory=deque)
    closed: bool = False
    stored_bytes: int = 0
    checksum: int | None = None
    budget: Budget | None = None
