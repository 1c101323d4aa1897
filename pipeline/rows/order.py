"""Which rows come when: a pure function of (seed, epoch, position)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.rows.choices import Shuffle

if TYPE_CHECKING:
    from pipeline.rows.selection import RowSelection

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SHARDS, _GROUPS, _ROWS = range(3)  # what a permutation is for, so that no two share their random numbers


Spans = NDArray[np.int64]
"""(K, 2): rows [start, stop) of an epoch's sequence."""


@dataclass(frozen=True, order=True, kw_only=True)
class RowPosition:
    """Between which two rows a reader stands: all epochs before `epoch` and `row` rows of it lie behind."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What rank `rank` of `ranks` has of every batch: contiguous rows, whose number differs by at most one between
    ranks; none if a batch has fewer rows than there are ranks."""

    rank: int = 0
    ranks: int = 1

    def of(self, rows: int) -> tuple[int, int]:
        """[start, stop) of the rows of a batch of `rows`."""
        return rows * self.rank // self.ranks, rows * (self.rank + 1) // self.ranks

    def of_each(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Spans:
        """Of the batches [starts[i], stops[i])."""
        rows = stops - starts
        bounds = starts + rows * self.rank // self.ranks, starts + rows * (self.rank + 1) // self.ranks
        return np.stack(bounds, axis=1)


def united(spans: Spans, *, within: tuple[int, int]) -> Spans:
    """The rows of `spans` that lie `within` bounds, as spans that ascend and do not touch."""
    spans = np.clip(spans, *within)
    spans = spans[spans[:, 0] < spans[:, 1]]
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    begins = np.concatenate((np.ones(min(len(spans), 1), np.bool_), spans[1:, 0] > reach[:-1]))
    ends = np.concatenate((begins[1:], begins[:1]))
    return np.stack((spans[begins, 0], reach[ends]), axis=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class ShuffleWindow:
    """Rows that are shuffled among themselves: some row groups, read together.

    Rows [start, stop) of the epoch's sequence are those of the concatenation of `groups`, in `Order.row_order`.
    """

    epoch: int
    index: int
    start: int
    stop: int
    groups: NDArray[np.int64]
    """Row groups in reading order, each by its index in file order over all shards."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture:
    """A window's order as an order within each of its groups, and how the groups, each in that order, are mixed.

    Any permutation comes apart like this. A group's column fits a core's cache, where reading it in random order costs
    little, and mixing reads every group from front to back; taking rows from a whole window at once waits for memory
    at every row.
    """

    within: NDArray[np.uint32]
    """(n,): the i-th row of a group of rows [start, stop) of the window is its row `within[start + i]`."""
    starts: NDArray[np.int64]
    """(G + 1,): where the rows of each group start."""
    places: NDArray[np.uint32]
    """(n,): row i of the sequence is the row at `places[i]` of the groups so ordered."""


class Order:
    """The sequence of rows of every epoch over `shards`, whatever reads it: batch size, ranks and threads play no part.

    `shards[i]` holds the rows of each row group of shard i, in file order. What `shuffle` does:
    "none": file order. "files": shards in random order, rows in file order (AlgoPerf's own order).
    "rows": row groups in random order, then rows in random order within windows of `window_groups` groups.
    Every row comes exactly once an epoch. Memory and time to reach any position: O(row groups + rows of a window).
    With `only` these rows alone are in it, and row groups without any are left out; with `epochs_alike` the sequence
    of the first epoch is that of all.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[int]],
        *,
        seed: int,
        shuffle: Shuffle,
        window_groups: int,
        only: RowSelection | None = None,
        epochs_alike: bool = False,
    ) -> None:
        self.seed = seed
        self.shuffle = shuffle
        self.window_groups = window_groups if shuffle == "rows" else 1
        self._shard_starts = [0, *accumulate(len(groups) for groups in shards)]
        self.group_rows = np.fromiter((rows for groups in shards for rows in groups), np.int64)
        """(G,): rows that the sequence takes of each row group."""
        self.group_starts = np.concatenate(([0], np.cumsum(self.group_rows)))
        """(G + 1,): where each row group starts in file order, with all its rows."""
        self._only, self._epochs_alike = only, epochs_alike
        self._groups = np.arange(len(self.group_rows))
        if only is not None:
            self.group_rows = only.counts(self.group_starts)
            self._groups = np.flatnonzero(self.group_rows)
        self.rows = int(self.group_rows.sum())
        self._reading = lru_cache(maxsize=2)(self._reading_of)

    def shard_of(self, group: int) -> tuple[int, int]:
        """The shard that holds row group `group`, and which of that shard's groups it is."""
        shard = bisect_right(self._shard_starts, group) - 1
        return shard, group - self._shard_starts[shard]

    def window_count(self) -> int:
        """Windows in an epoch: ⌈row groups that are read / window_groups⌉."""
        return -(-len(self._groups) // self.window_groups)

    def rows_in_file(self, group: int) -> int:
        """Rows of row group `group`, whether they are in the sequence or not."""
        return int(self.group_starts[group + 1] - self.group_starts[group])

    def taken(self, group: int) -> NDArray[np.uint32] | None:
        """The rows of a row group that are in the sequence, ascending; None: all of them."""
        if self._only is None:
            return None
        return self._only.rows_of(int(self.group_starts[group]), int(self.group_starts[group + 1]))

    def window_at(self, epoch: int, row: int) -> int:
        """The window that holds row `row` (0 ≤ row < rows) of `epoch`."""
        return bisect_right(self._reading(epoch)[1], row) - 1

    def window(self, epoch: int, index: int) -> ShuffleWindow:
        """ShuffleWindow `index` of `epoch`."""
        groups, starts = self._reading(epoch)
        start, stop = starts[index], starts[index + 1]
        return ShuffleWindow(
            epoch=epoch,
            index=index,
            start=start,
            stop=stop,
            groups=groups[index * self.window_groups : (index + 1) * self.window_groups],
        )

    def row_order(self, window: ShuffleWindow) -> NDArray[np.uint32] | None:
        """Row `window.start + i` of the sequence is row `row_order[i]` of the window's groups; None: row i of them."""
        if self.shuffle != "rows":
            return None
        return permutation(self._key(window.epoch, _ROWS, window.index), window.stop - window.start)

    def mixture(self, window: ShuffleWindow, spans: Spans | None = None) -> Mixture | None:
        """`row_order`, or of it `spans` of the sequence, in two steps, see `Mixture`; None if rows are not shuffled."""
        order = self.row_order(window)
        if order is None:
            return None
        sizes = self.group_rows[window.groups]
        firsts = np.cumsum(sizes) - sizes
        group_of = np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)
        if spans is not None:
            order = np.concatenate([order[:0], *(order[start:stop] for start, stop in spans - window.start)])
            sizes = np.bincount(group_of[order], minlength=len(sizes))
        starts = np.concatenate(([0], np.cumsum(sizes)))
        mixture = Mixture(within=np.empty_like(order), starts=starts, places=np.empty_like(order))
        _take_apart(order, group_of, firsts, starts.astype(np.uint32), mixture.within, mixture.places)
        return mixture

    def row_ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Which rows stand at [start, stop) of `epoch`, each by its index in file order over the split."""
        parts = []
        for index in range(self.window_at(epoch, start), self.window_count()):
            window = self.window(epoch, index)
            if window.start >= stop:
                break
            ids = np.concatenate([self._ids_of(int(group)) for group in window.groups])
            order = self.row_order(window)
            parts.append((ids if order is None else ids[order])[max(start - window.start, 0) : stop - window.start])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _ids_of(self, group: int) -> NDArray[np.int64]:
        taken = self.taken(group)
        return self.group_starts[group] + (np.arange(self.rows_in_file(group)) if taken is None else taken)

    def _reading_of(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """Row groups in the epoch's reading order (G,), and where in the sequence each window starts (windows + 1,)."""
        groups = self._groups
        if self.shuffle == "rows":
            groups = groups[permutation(self._key(epoch, _GROUPS), len(groups))]
        elif self.shuffle == "files":
            shards = permutation(self._key(epoch, _SHARDS), len(self._shard_starts) - 1)
            bounds = self._shard_starts
            groups = np.concatenate([groups[:0], *(np.arange(bounds[i], bounds[i + 1]) for i in shards)])
            groups = groups if self._only is None else groups[self.group_rows[groups] > 0]
        ends = np.concatenate(([0], np.cumsum(self.group_rows[groups])))
        window_ends = np.minimum(np.arange(self.window_count() + 1) * self.window_groups, len(groups))
        return groups, ends[window_ends].tolist()

    def _key(self, epoch: int, purpose: int, index: int = 0) -> int:
        key = 0
        for part in (self.seed, 0 if self._epochs_alike else epoch, purpose, index):
            key = _mix((key + part + 1) * _GOLDEN & _WORD)
        return key


def permutation(key: int, count: int) -> NDArray[np.uint32]:
    """A uniformly random permutation of range(count), the same for the same `key` on every machine and version.

    Fisher and Yates's shuffle on SplitMix64 (Steele, Lea and Flood, 2014), whose n-th number is a function of
    key + n; a library's generator may change its stream between versions and would change the order of a resumed run.
    """
    order = np.empty(count, np.uint32)
    _shuffle(np.uint64(key), order)
    return order


def _mix(word: int) -> int:
    """SplitMix64's finalizer on Python integers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31


@compiled
def _shuffle(key, order):  # pragma: no cover - compiled
    state = np.uint64(key)
    low_half = np.uint64(0xFFFFFFFF)
    for i in range(order.size):
        bound = np.uint64(i + 1)
        while True:
            state += np.uint64(0x9E3779B97F4A7C15)
            word = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            word = (word ^ (word >> np.uint64(31))) & low_half
            product = word * bound
            # Lemire's unbiased range: below 2³² mod bound the high half would favor some values.
            low = product & low_half
            if low >= bound or low >= np.uint64(4294967296) % bound:
                break
        j = np.int64(product >> np.uint64(32))
        order[i] = order[j]
        order[j] = i


@compiled
def _take_apart(order, group_of, firsts, starts, within, places):  # noqa: PLR0917  # pragma: no cover - compiled
    """Fills a `Mixture` from the order of its rows, the group of every row of the window, the first row of each group
    there (G,) and where its rows start in the mixture (G + 1,)."""
    following = starts.copy()
    for i in range(order.size):
        row = order[i]
        group = group_of[row]
        place = following[group]
        places[i] = place
        within[place] = row - firsts[group]
        following[group] = place + np.uint32(1)
