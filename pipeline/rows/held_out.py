"""The rows that are kept for probing alone, as probes in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.errors import StorageError
from pipeline.rows.choices import Shuffle
from pipeline.rows.order import Order
from pipeline.rows.reader import RowBatch, RowReader
from pipeline.rows.selection import WHOLE_GROUPS, RowSelection


def probing_order(
    shards: Sequence[Sequence[int]], only: RowSelection, *, seed: int, shuffle: Shuffle, window_groups: int
) -> Order:
    """The sequence of the rows `only`, those held out: the same in every epoch.

    Fewer rows than `WHOLE_GROUPS` row groups have are one window, which a reader keeps; others come as `shuffle` has
    it. No random number of it is also one of the sequence that is trained on.
    """
    largest = max((rows for groups in shards for rows in groups), default=0)
    seed = -1 - seed
    order = Order(shards, seed=seed, shuffle=shuffle, window_groups=window_groups, only=only, epochs_alike=True)
    if order.rows >= WHOLE_GROUPS * largest:
        return order
    groups = max(int(np.count_nonzero(order.group_rows)), 1)
    return Order(shards, seed=seed, shuffle="rows", window_groups=groups, only=only, epochs_alike=True)


class HeldOutProbes:
    """Probes of rows that are never trained on, in turn: a pure function of their number.

    With H rows held out and p of them a probe, probe n has the rows n·p to n·p + p − 1 of their one fixed sequence,
    modulo H. So it always has p different rows, and each row comes once before any comes again. p is `probe_rows`, or
    H if that is less. Damaged rows are left out; a probe of nothing else gives way to the next.
    """

    def __init__(self, reader: RowReader, *, probe_rows: int) -> None:
        """`reader` gives the rows held out, in the same sequence in every epoch, and is closed with this.

        If one window holds all of it, that is read once and kept, and the reader is closed then.
        """
        self.rows = reader.order.rows
        self.probe_rows = min(probe_rows, self.rows)
        self._reader = reader
        self._kept: RowBatch | None = None

    def at(self, number: int) -> RowBatch:
        """Probe `number`. Raises: what `RowReader.read` raises, and StorageError if damage leaves no row."""
        if self._reader.order.window_count() == 1:
            return self._of_kept(number)
        for later in range(-(-self.rows // self.probe_rows) + 1):
            cycle, start = divmod((number + later) * self.probe_rows, self.rows)
            stop = start + self.probe_rows
            found = self._reader.read(cycle, start, min(stop, self.rows))
            if stop > self.rows:
                found = joined(found, self._reader.read(cycle + 1, 0, stop - self.rows))
            if found.rows:
                return found
        raise self._nothing_left()

    def close(self) -> None:
        """Ends the reader's threads; a read under way raises an error."""
        self._reader.close()

    def _of_kept(self, number: int) -> RowBatch:
        if self._kept is None:
            self._kept = self._reader.read(0, 0, self.rows)
            self._reader.close()
        kept = self._kept
        if not kept.rows:
            raise self._nothing_left()
        probe_rows = min(self.probe_rows, kept.rows)
        start = number * probe_rows % kept.rows
        stop = start + probe_rows
        found = kept.slice(start, min(stop, kept.rows))
        return found if stop <= kept.rows else joined(found, kept.slice(0, stop - kept.rows))

    def _nothing_left(self) -> StorageError:
        return StorageError(
            f"damage leaves none of the {self.rows} rows that are held out for probing; run `alphastream verify` on "
            'the data and preprocess it again, or set data.pairing = "sliding" in a new run'
        )


def joined(first: RowBatch, second: RowBatch) -> RowBatch:
    """The rows of both as one batch, whose place is that of the first."""
    return RowBatch(
        label=np.concatenate((first.label, second.label)),
        dense=np.concatenate((first.dense, second.dense), axis=1),
        buckets=np.concatenate((first.buckets, second.buckets), axis=1),
        weight=None if first.weight is None or second.weight is None else np.concatenate((first.weight, second.weight)),
        epoch=first.epoch,
        start=first.start,
        skipped=first.skipped + second.skipped,
        held_out=first.held_out,
    )
