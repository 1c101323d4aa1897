"""Which rows are kept for probing alone: a pure function of (rows of the row groups, share, seed)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

WHOLE_GROUPS = 32
"""Where the share makes so many row groups, whole ones are held out; with no more groups in all, single rows."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class RowSelection:
    """Some of the rows of a split, each by its index in file order: those of stretches, or all but those."""

    def __init__(self, starts: NDArray[np.int64], stops: NDArray[np.int64], *, within: bool = True) -> None:
        """The stretches [starts[i], stops[i]) ascend and do not overlap; `within`: their rows, else the others."""
        self._starts, self._stops, self._within = starts, stops, within
        self._before = np.concatenate(([0], np.cumsum(stops - starts)))

    def others(self) -> RowSelection:
        """All rows that are not in this one."""
        return RowSelection(self._starts, self._stops, within=not self._within)

    def counts(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows of each [bounds[i], bounds[i + 1]) are selected, (len(bounds) − 1,)."""
        inside = np.diff(self._below(bounds))
        return inside if self._within else np.diff(bounds) - inside

    def rows_of(self, start: int, stop: int) -> NDArray[np.uint32] | None:
        """Those of the rows [start, stop) that are selected, counted from `start`, ascending; None if all of them
        are."""
        first = np.searchsorted(self._stops, start, side="right")
        last = np.searchsorted(self._starts, stop, side="left")
        edges = np.zeros(stop - start + 1, np.int32)
        np.add.at(edges, np.maximum(self._starts[first:last] - start, 0), 1)
        np.add.at(edges, np.minimum(self._stops[first:last], stop) - start, -1)
        selected = (np.cumsum(edges[:-1]) > 0) == self._within
        return None if selected.all() else np.flatnonzero(selected).astype(np.uint32)

    def _below(self, rows: ArrayLike) -> NDArray[np.int64]:
        """How many rows of the stretches lie below each of `rows`."""
        begun = np.searchsorted(self._starts, rows, side="left")
        beyond = np.concatenate(([0], self._stops))[begun] - rows
        return self._before[begun] - np.where(begun > 0, np.maximum(beyond, 0), 0)


def hold_out(group_rows: Sequence[int], *, share: float, seed: int) -> RowSelection:
    """The `share` of the rows that is never trained on, one row at least, spread evenly over the log.

    The log is cut into strata of equal size, each of which gives its share from a place that `seed` draws. What is
    drawn is what costs a reader least, which decodes a row group as a whole:

    - `WHOLE_GROUPS` row groups or fewer: single rows, as independent of one another as can be. All groups are read for
      them once, and they are kept in memory.
    - more: a run of neighbouring rows in each of `WHOLE_GROUPS` strata, so that few groups are read for them.
    - so many that the share makes `WHOLE_GROUPS` of them: whole row groups, read for probing alone, and training reads
      no row in vain. The share is one of row groups then.
    """
    count, rows = len(group_rows), sum(group_rows)
    if share * count >= WHOLE_GROUPS:
        bounds = np.asarray(list(accumulate(group_rows, initial=0)))
        strata = _cuts(count, round(share * count))
        drawn = strata[:-1] + _below_each(np.diff(strata), seed)
        return RowSelection(bounds[drawn], bounds[drawn + 1])
    wanted = max(round(share * rows), min(rows, 1))
    pieces = wanted if count <= WHOLE_GROUPS else min(wanted, WHOLE_GROUPS)
    strata, lengths = _cuts(rows, pieces), np.diff(_cuts(wanted, pieces))
    starts = strata[:-1] + _below_each(np.diff(strata) - lengths + 1, seed)
    return RowSelection(starts, starts + lengths)


def _cuts(total: int, pieces: int) -> NDArray[np.int64]:
    """Bounds of `pieces` almost equal parts of `total`, (pieces + 1,)."""
    return np.asarray([total * i // pieces for i in range(pieces + 1)] if pieces else [0], np.int64)


def _below_each(limits: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random whole number below each of `limits`: the n-th of SplitMix64 from a state of its own for each `seed`."""
    state = np.uint64((seed * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) % 2**64)
    word = state + np.arange(1, len(limits) + 1, dtype=np.uint64) * _GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return (word % limits.astype(np.uint64)).astype(np.int64)
