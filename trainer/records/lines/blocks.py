"""Which old records are merged: blocks of 2, 4, 8 … steps, the longer the older, cut where a run may be continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError
from trainer.records.lines.index import LineIndex

Record = dict[str, Any]
Merge = Callable[[Record, Record], Record]
COPY_BYTES = 1 << 20


def block_levels(
    first: NDArray[np.int64], last: NDArray[np.int64], *, done: int, full_steps: int, kept: Sequence[int]
) -> NDArray[np.int64]:
    """The level k of the block [a·2ᵏ, (a+1)·2ᵏ) into which each line, of steps `first` to `last`, belongs.

    After `done` steps a block is merged if it ended at least `full_steps`·2ᵏ⁻¹ steps ago and no step of `kept` begins
    within it: a checkpoint there is continued from with the records before it. Levels grow with `done`, and a block
    lies within the next larger one: whenever and however often lines are merged, the same come of it. So there are at
    most `full_steps` lines of single steps, and `full_steps` / 2 more each time that a run becomes twice as long.
    """
    level = np.zeros(len(first), dtype=np.int64)
    borders = np.unique(np.asarray(kept, dtype=np.int64))
    k = 1
    while done - (1 << k) >= full_steps << (k - 1):
        start = first >> k << k
        end = start + (1 << k)
        whole = np.searchsorted(borders, end, side="left") == np.searchsorted(borders, start, side="right")
        level[(last < end) & (done - end >= full_steps << (k - 1)) & whole] = k
        k += 1
    return level


def to_merge(index: LineIndex, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines are merged with the one before."""
    block = index.step >> levels << levels
    merged = np.zeros(len(block), dtype=bool)
    merged[1:] = (block[1:] == block[:-1]) & (levels[1:] == levels[:-1]) & (levels[1:] > 0)
    return merged


def write_merged(out: BinaryIO, source: BinaryIO, index: LineIndex, levels: NDArray[np.int64], merge: Merge) -> None:
    """Writes the lines of `source` with those of one block merged, and all others as they are.

    Raises: StorageError if the file has changed since it was indexed; OSError.
    """
    block = index.step >> levels << levels
    cuts = [*np.flatnonzero(~to_merge(index, levels)).tolist(), len(block)]
    copied = 0  # lines before this one are written
    for low, high in pairwise(cuts):
        if high - low > 1:
            _copy(out, source, index, copied, low)
            records = [(int(index.step[line]), _read(source, index, line)) for line in range(low, high)]
            out.write(msgspec.json.encode(merge_block(records, int(block[low]), int(levels[low]), merge)) + b"\n")
            copied = high
    _copy(out, source, index, copied, len(block))


def merge_block(records: Sequence[tuple[int, Record]], start: int, level: int, merge: Merge) -> Record:
    """The (step, record) of a block as one record, its halves merged first: sums round alike in one go or in many."""
    if len(records) == 1:
        return records[0][1]
    middle = start + (1 << level - 1)
    early = [each for each in records if each[0] < middle]
    late = records[len(early) :]
    if not early or not late:
        return merge_block(records, middle if late else start, level - 1, merge)
    return merge(merge_block(early, start, level - 1, merge), merge_block(late, middle, level - 1, merge))


def _read(source: BinaryIO, index: LineIndex, line: int) -> Record:
    source.seek(int(index.start[line]))
    try:
        return msgspec.json.decode(source.read(int(index.end[line] - index.start[line])))
    except msgspec.DecodeError as error:  # it could be read when its lines were counted
        raise StorageError(f"it has changed meanwhile: {error}") from error


def _copy(out: BinaryIO, source: BinaryIO, index: LineIndex, low: int, high: int) -> None:
    """Copies lines; stretches that lie together at once."""
    if low == high:
        return
    apart = np.flatnonzero(index.start[low + 1 : high] != index.end[low : high - 1]) + low + 1
    for first, behind in pairwise([low, *apart.tolist(), high]):
        source.seek(int(index.start[first]))
        left = int(index.end[behind - 1] - index.start[first])
        while left:
            part = source.read(min(left, COPY_BYTES))
            if not part:
                raise StorageError("it has become shorter meanwhile")
            out.write(part)
            left -= len(part)
