"""Pairs of disjoint batches (B1, B2): B2 is trained on, B1 probes the step that B2 makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from pipeline.errors import InputError, StorageError
from pipeline.rows.choices import Pairing
from pipeline.rows.held_out import HeldOutProbes
from pipeline.rows.order import RankShare, RowPosition, Spans, united
from pipeline.rows.reader import BatchShare, RowBatch, RowReader

Span = tuple[int, int]
"""Rows [start, stop) of an epoch's sequence."""
Place = tuple[bool, int, int, int]
"""Whether a batch is of held out rows, its epoch, where in that it starts, its rows."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchPair:
    """One step's data: `b2` to train on, `b1` to probe with; no row is in both.

    With several ranks `b1` and `b2` are one rank's shares: rows [b2_start, b2_start + b2.rows) of a batch of `b2_rows`.
    """

    b1: RowBatch
    b2: RowBatch
    b1_rows: int
    """Rows of `b1` over all ranks."""
    b1_start: int
    """Which of them the first of `b1` is."""
    b2_rows: int
    """Rows of `b2` over all ranks."""
    b2_start: int
    """Which of them the first of `b2` is."""
    start: int
    """Where in the epoch's sequence the batch that `b2` is of starts, the same on every rank."""
    fresh: bool
    """Whether no row of `b1` has been trained on in this epoch; a stale probe gives a biased estimate."""
    position: RowPosition
    """Where this pair ends: the next one starts there."""
    skipped: int
    """Rows of damaged row groups passed over on the way from the pair before to `position`."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Where damage leaves no row to train on, and so no pair."""

    position: RowPosition
    """Where the next pair starts."""
    skipped: int
    """Rows of damaged row groups among those passed over."""


@dataclass(frozen=True, kw_only=True)
class PairSpans:
    """Which rows of an epoch make which pair: a pure function of the position, over `rows` rows an epoch.

    "sliding": b2 is the next `batch_rows` rows, b1 the first `probe_rows` rows after them, which the next pair trains
    on. The last b2 of an epoch may be shorter, the b1 before it too; the last pair has no fresh rows left to probe.
    "disjoint": b1 is the next `probe_rows` rows, b2 the `batch_rows` rows after them; both are used up. What is left
    of an epoch and too little for a pair is shared out between b1 and b2 in the same proportion.
    "held_out": b2 is the next `batch_rows` of the `rows` that are trained on; b1 comes from the others, as
    `HeldOutProbes` has it, and is always fresh.
    Every row comes once an epoch, but for stale probes and rows held out. If damage empties b1, the next whole rows
    of its sequence take its place.
    """

    rows: int
    batch_rows: int
    probe_rows: int
    pairing: Pairing = "sliding"

    def __post_init__(self) -> None:
        if self.pairing == "held_out":
            if self.rows < self.batch_rows:
                raise InputError(
                    f"{self.rows} rows are too few for a batch of {self.batch_rows} beside those that are held out; "
                    f"set data.batch_rows to {max(self.rows, 1)} or less"
                )
            return
        need = self.batch_rows + self.probe_rows
        if self.rows < need and not self.rows == self.batch_rows == self.probe_rows == 1:
            raise InputError(
                f"{self.rows} rows are too few for a pair of {self.probe_rows} + {self.batch_rows} rows; "
                f"set data.batch_rows{' and data.probe_rows' * (self.probe_rows != self.batch_rows)} to "
                f"{max(self.rows // 2, 1)} or less"
            )
        if self.pairing == "sliding" and self.probe_rows > self.batch_rows:
            raise InputError(
                f"data.probe_rows = {self.probe_rows} is more than data.batch_rows = {self.batch_rows}; a sliding "
                'probe is part of the next batch, so lower it or set data.pairing = "disjoint"'
            )

    @classmethod
    def within(cls, *, rows: int, batch_rows: int, probe_rows: int, pairing: Pairing) -> PairSpans:
        """Of `rows` rows, 1 or more, in batches as large as given, or, where these would not make one pair of them, as
        large as makes one: a generation may be of any size.

        A row that is alone is trained on with itself as its stale probe, of which no estimate is made.
        """
        if rows < batch_rows + probe_rows:
            share = rows // 2 if pairing == "sliding" else rows * probe_rows // (batch_rows + probe_rows)
            probe_rows = min(probe_rows, max(share, 1))
            batch_rows = min(batch_rows, max(rows - probe_rows, 1))
        return cls(rows=rows, batch_rows=batch_rows, probe_rows=probe_rows, pairing=pairing)

    @property
    def stride(self) -> int:
        """Rows of the sequence that a pair uses up."""
        return self.batch_rows + (self.probe_rows if self.pairing == "disjoint" else 0)

    @property
    def steps_per_epoch(self) -> int:
        """Pairs of a whole epoch."""
        return -(-self.rows // self.stride)

    def at(self, row: int) -> tuple[Span | None, Span]:
        """(b1, b2) of the pair at `row`; b1 is None if no fresh row of the sequence is left for it, or held out."""
        if self.pairing == "held_out":
            return None, (row, min(row + self.batch_rows, self.rows))
        if self.pairing == "sliding":
            middle = min(row + self.batch_rows, self.rows)
            end = min(middle + self.probe_rows, self.rows)
            return ((middle, end) if end > middle else None), (row, middle)
        end = min(row + self.stride, self.rows)
        middle = row + (end - row) * self.probe_rows // self.stride
        return ((row, middle) if middle > row else None), (middle, end)

    def wanted(self, share: RankShare, position: RowPosition) -> Callable[[int, int, int], Spans]:
        """Which rows of [start, stop) of an epoch's sequence `share` needs of the pairs from `position` on, if none are
        damaged: (epoch, start, stop) → spans."""

        def of(epoch: int, start: int, stop: int) -> Spans:
            shift = position.row % self.stride if epoch == position.epoch else 0  # of another batch size until then
            first = max(start - shift - self.batch_rows - self.probe_rows, 0) // self.stride
            begins = np.arange(shift + first * self.stride, max(stop, shift), self.stride, dtype=np.int64)
            ends = np.minimum(begins + self.stride, self.rows)
            if self.pairing == "disjoint":
                middles = begins + (ends - begins) * self.probe_rows // self.stride
                batches = [(begins, middles), (middles, ends)]
            else:
                batches = [(begins, ends)]
            if self.pairing == "sliding":
                batches.append((ends, np.minimum(ends + self.probe_rows, self.rows)))
            if self.pairing != "held_out":  # the epoch's first probe, which its last pair may need
                batches.append((np.array([0]), np.array([self.probe_rows])))
            return united(np.concatenate([share.of_each(*batch) for batch in batches]), within=(start, stop))

        return of

    def number(self, position: RowPosition) -> int:
        """Of the pair at `position`: how many lie before it from the first epoch on."""
        return position.epoch * self.steps_per_epoch + position.row // self.stride

    def position_after(self, start: RowPosition, pairs: int) -> RowPosition:
        """Where the `pairs` pairs (or gaps in their place) from `start` on end, in O(1)."""
        left = -(-(self.rows - start.row) // self.stride)
        if pairs < left:
            return RowPosition(epoch=start.epoch, row=start.row + pairs * self.stride)
        epochs, number = divmod(pairs - left, self.steps_per_epoch)
        return RowPosition(epoch=start.epoch + 1 + epochs, row=number * self.stride)


class HostPairs:
    """The pairs from `position` on, epoch after epoch without end.

    A rank gets its share of every batch of the one global sequence: `share`, as the reader has it.
    Raises while iterating: what `RowReader.read` raises, and StorageError if damage leaves no pair in an epoch.
    """

    def __init__(
        self,
        reader: RowReader,
        spans: PairSpans,
        position: RowPosition,
        *,
        held_out: HeldOutProbes | None = None,
    ) -> None:
        """`held_out` gives the probes of the pairing of that name."""
        assert (spans.pairing == "held_out") == (held_out is not None)
        self.position = position
        self.spans = spans
        self._held_out = held_out
        self._reader = reader
        self._first: BatchShare | None = None
        self._last: tuple[tuple[int, Span], BatchShare] | None = None

    def __iter__(self) -> HostPairs:
        return self

    def __next__(self) -> BatchPair:
        skipped = 0
        for _ in range(self.spans.steps_per_epoch):  # an epoch of nothing but gaps ends them
            found = self.at(self.position)
            self.position = found.position
            skipped += found.skipped
            if isinstance(found, BatchPair):
                return replace(found, skipped=skipped)
        raise self.nothing_left()

    def at(self, position: RowPosition) -> BatchPair | Gap:
        """What lies at `position`, a function of nothing else; quick if positions follow one another."""
        epoch, row = position.epoch, position.row
        probe, train = self.spans.at(row)
        b2 = self._read(epoch, train)
        b1 = self._read(epoch, probe) if probe else None
        skipped = b2.part.skipped
        if b1 is not None and self.spans.pairing == "disjoint":
            skipped += b1.part.skipped
        if row == 0 and self._held_out is None:
            self._keep_first(epoch)
        after = self.spans.position_after(position, 1)
        if not b2.rows:
            return Gap(position=after, skipped=skipped)
        fresh = True
        if self._held_out is not None:
            b1 = BatchShare.of(self._held_out.at(self.spans.number(position)), self._reader.share)
        elif b1 is None or not b1.rows:
            b1, fresh = self._other_probe(epoch, train)
        return BatchPair(
            b1=b1.part,
            b2=b2.part,
            b1_rows=b1.rows,
            b1_start=b1.start,
            b2_rows=b2.rows,
            b2_start=b2.start,
            start=train[0],
            fresh=fresh,
            position=after,
            skipped=skipped,
        )

    def close(self) -> None:
        """Ends the threads that read; a read under way raises an error."""
        self._reader.close()
        if self._held_out is not None:
            self._held_out.close()

    def nothing_left(self) -> StorageError:
        """The error of an epoch of nothing but gaps."""
        return StorageError(
            f"{len(self._reader.damaged)} damaged row groups leave no two batches of whole rows in an epoch; "
            "run `alphastream verify` on the data and preprocess it again"
        )

    def _read(self, epoch: int, span: Span) -> BatchShare:
        """The share of rows `span`, which with sliding pairs the pair before had as its probe."""
        if self._last is None or self._last[0] != (epoch, span):
            self._last = (epoch, span), self._reader.read_share(epoch, *span)
        return self._last[1]

    def _keep_first(self, epoch: int) -> None:
        """Copies the epoch's first probe, which its last pair needs, so that its window need not be read again."""
        first = self._reader.read_share(epoch, 0, self.spans.probe_rows)
        copies = {name: getattr(first.part, name).copy() for name in ("label", "dense", "buckets")}
        copies |= {} if first.part.weight is None else {"weight": first.part.weight.copy()}
        self._first = replace(first, part=replace(first.part, **copies))

    def _other_probe(self, epoch: int, train: Span) -> tuple[BatchShare, bool]:
        """A probe in place of one that has no rows, and whether it is fresh: the next whole rows after `train`, or
        else the epoch's first, all of them before `train`."""
        first = self._first
        if train[1] == self.spans.rows and first is not None and first.part.epoch == epoch and first.rows:
            return first, False
        for begin, end in ((train[1], self.spans.rows), (0, train[0])):
            for start in range(begin, end, self.spans.probe_rows):
                batch = self._reader.read_share(epoch, start, min(start + self.spans.probe_rows, end))
                if batch.rows:
                    return batch, begin > 0
        raise self.nothing_left()


class OncePerBatch(Generic[T]):
    """What `make` gives for both batches of a pair; made only once for a probe that is also the next pair's `b2`."""

    def __init__(self, make: Callable[[RowBatch], T]) -> None:
        self._make = make
        self._last: tuple[Place, T] | None = None

    def __call__(self, pair: BatchPair) -> tuple[T, T]:
        """Of (b1, b2)."""
        b2 = self._of(pair.b2, _place(pair.b2, pair.b2_start, pair.b2_rows))
        place = _place(pair.b1, pair.b1_start, pair.b1_rows)
        b1 = self._of(pair.b1, place)
        self._last = place, b1
        return b1, b2

    def _of(self, batch: RowBatch, place: Place) -> T:
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        return self._make(batch)


def _place(part: RowBatch, start: int, rows: int) -> Place:
    """Of the whole batch of which `part` is a rank's share, always the same one."""
    return part.held_out, part.epoch, part.start - start, rows
