"""Where each line of a record file lies, and what it stands for."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class Extent(NamedTuple):
    """How far the records of a file reach."""

    last_step: int = -1
    """Of its last record; -1 if there is none, or if it has no step."""
    count: int = 0
    """How many records it holds; a line into which several were merged counts for all of them."""


@dataclass(frozen=True, kw_only=True)
class LineIndex:
    """The whole lines of a file, in order. Damaged ones are left out, and so are those that a later line takes back."""

    step: NDArray[np.int64]
    """The line's step, the first one of those that were merged; -1 without one."""
    last: NDArray[np.int64]
    """The last of those steps."""
    count: NDArray[np.int32]
    """How many records it stands for."""
    start: NDArray[np.int64]
    """Where it begins, in bytes."""
    end: NDArray[np.int64]
    """Where the next one begins."""

    def extent(self, lines: int | None = None) -> Extent:
        """Of the first so many lines, by default of all."""
        last, count = self.last[:lines], self.count[:lines]
        return Extent(int(last[-1]), int(count.sum())) if len(last) else Extent()

    def lines_within(self, length: int) -> int:
        """How many lines end within the first `length` bytes."""
        return int(np.searchsorted(self.end, length, side="right"))

    def lines_until(self, step: int) -> int:
        """How many lines there are up to the last one all of whose records are of `step` or earlier."""
        return int(np.max(np.flatnonzero(self.last <= step), initial=-1)) + 1


class _Line(msgspec.Struct):
    step: float | None = None
    steps: int = 1
    estimates: int = 1
    last_step: int | None = None


def index_lines(path: Path, *, one_a_step: bool = False) -> LineIndex:
    """Reads the file; one that is missing has no lines.

    `one_a_step`: steps ascend, so that a line is taken back by a later one of its step or an earlier one.
    """
    steps, lasts, counts, sizes, ends = array("q"), array("q"), array("i"), array("i"), array("q")
    decode = msgspec.json.Decoder(_Line).decode
    end = 0
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                end += len(line)
                try:
                    record = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                if line.endswith(b"\n"):
                    step = -1 if record.step is None else int(record.step)
                    steps.append(step)
                    lasts.append(step + record.steps - 1 if record.last_step is None else record.last_step)
                    counts.append(max(record.steps, record.estimates))
                    sizes.append(len(line))
                    ends.append(end)
    step, last, end_of = (np.asarray(each, dtype=np.int64) for each in (steps, lasts, ends))
    count, size = np.asarray(counts, dtype=np.int32), np.asarray(sizes, dtype=np.int32)
    keep = not_taken_back(step) if one_a_step else np.ones(len(step), dtype=bool)
    return LineIndex(step=step[keep], last=last[keep], count=count[keep], start=(end_of - size)[keep], end=end_of[keep])


def not_taken_back(step: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which lines no later line takes back: a later line with the same or an earlier step does."""
    if len(step) == 0:
        return np.zeros(0, dtype=bool)
    from_here = np.minimum.accumulate(np.where(np.isnan(step), np.inf, step)[::-1])[::-1]
    return step < np.append(from_here[1:], np.inf)
