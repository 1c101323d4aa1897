"""Rows of a split by their place in the epoch's sequence, read ahead on threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import count, islice, pairwise, takewhile

import numpy as np
from numpy.typing import NDArray

from pipeline.buffers import BufferPool
from pipeline.errors import DamagedRowsError, FetchError, ReadFailedError, StorageError, UnseenDamageError
from pipeline.reads import ReaderThreads, awaited, never
from pipeline.rows.choices import OnDamage
from pipeline.rows.columns import mix_rows
from pipeline.rows.groups import GroupReader
from pipeline.rows.order import Order, RankShare, ShuffleWindow, Spans
from pipeline.rows.windows import WindowLoad
from pipeline.schema import LogFormat
from pipeline.stages import StageTotals


@dataclass(frozen=True, eq=False, kw_only=True)
class RowBatch:
    """Rows [start, start + rows + skipped) of an epoch's sequence, column-major; arrays may be views of a window.

    If the reader encodes, labels are float32, dense values are logarithms whose float32 bits `dense` holds as int32
    (`dense.view(float32)` gives them), and buckets are table rows.
    """

    label: NDArray
    """(R,) uint8"""
    dense: NDArray[np.int32]
    """(D, R), 0 = missing."""
    buckets: NDArray[np.int32]
    """(S, R)"""
    weight: NDArray[np.float32] | None = None
    """(R,): how often each row counts; None of a format without weights."""
    epoch: int
    start: int
    skipped: int = 0
    """Rows of that range left out because their row group is damaged (only if damage is to be skipped)."""
    held_out: bool = False
    """Whether the sequence is that of the rows held out for probing, and not of those that are trained on."""

    @property
    def rows(self) -> int:
        return len(self.label)

    def slice(self, start: int, stop: int) -> RowBatch:
        """Rows [start, stop) of the batch, as views; their place in the sequence is exact if none are skipped."""
        return RowBatch(
            label=self.label[start:stop],
            dense=self.dense[:, start:stop],
            buckets=self.buckets[:, start:stop],
            weight=None if self.weight is None else self.weight[start:stop],
            epoch=self.epoch,
            start=self.start + start,
            held_out=self.held_out,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchShare:
    """A rank's rows of a batch: its own, in `part`, are rows [start, start + part.rows) of the batch's `rows`."""

    part: RowBatch
    rows: int
    start: int

    @classmethod
    def of(cls, batch: RowBatch, share: RankShare) -> BatchShare:
        """The share of a batch that is there as a whole."""
        start, stop = share.of(batch.rows)
        part = batch if share.ranks == 1 else batch.slice(start, stop)
        return cls(part=part, rows=batch.rows, start=start)


class RowReader:
    """Random access to the rows of a split in the order that `order` gives; quick as long as reads move forward.

    Row groups of the current and the next windows are read, checked, decoded and shuffled on `threads` threads;
    memory is bounded by five windows (the one before, this one and the next, which takes two more while
    it is read) beside one row group a thread. `read` is called from one thread at a time; errors of the readers reach
    its caller.
    """

    def __init__(
        self,
        groups: GroupReader,
        order: Order,
        log_format: LogFormat,
        *,
        threads: int,
        encoded: bool = False,
        on_damage: OnDamage = "fail",
        last_epoch: int | None = None,
        held_out: bool = False,
        share: RankShare | None = None,
        wanted: Callable[[int, int, int], Spans] | None = None,
        stages: StageTotals | None = None,
    ) -> None:
        """With `last_epoch` nothing is read ahead of what is asked for beyond that epoch; `held_out` is said of every
        batch.

        With several ranks `wanted` says which rows of [start, stop) of an epoch the share of this one is expected to
        need, (epoch, start, stop) → spans as `united` has them: no others are decoded or held. If `share` then asks
        for more, as behind a damaged row group, whose rows move the shares, that window is read once more, and whole.
        """
        self.order = order
        self.stages = stages if stages is not None else StageTotals()
        self.damaged: dict[int, str] = {}
        """Row groups found damaged and skipped, each with what was wrong."""
        self._groups, self._on_damage, self._threads = groups, on_damage, threads
        self._last_epoch, self._held_out = last_epoch, held_out
        self._dense, self._sparse = len(log_format.dense), len(log_format.sparse)
        self._weight = bool(log_format.weight)
        self._columns = self._dense + self._sparse + self._weight
        self.share = share or RankShare()
        """Of every batch, what `read_share` gives."""
        self._wanted = wanted if self.share.ranks > 1 else None
        self._label_type = np.float32 if encoded else np.uint8
        self._ahead = 1 if order.shuffle == "rows" else 2 * threads
        self._pool = ReaderThreads(threads, name="reader")
        self._lock = threading.Lock()
        self._loads: dict[tuple[int, int], WindowLoad] = {}
        self._buffers = BufferPool(spare=8 if order.shuffle == "rows" else 4 * self._ahead)
        self._closed = False

    def read(self, epoch: int, start: int, stop: int, *, interrupted: Callable[[], bool] = never) -> RowBatch:
        """Rows [start, stop) of `epoch`, whatever this rank's share of them is.

        Raises: StorageError naming shard and row group if a row group is damaged, and damage is not to be skipped;
        ReadFailedError naming them if reading fails for longer than it is tried again; FetchError if a shard cannot be
        fetched; InputError if the cache is too small for one; InterruptedWaitError once `interrupted` while they are
        waited for.
        """
        return self._read(epoch, start, stop, RankShare(), interrupted).part

    def read_share(self, epoch: int, start: int, stop: int, *, interrupted: Callable[[], bool] = never) -> BatchShare:
        """This rank's share of the batch of rows [start, stop) of `epoch`. Raises: as `read`."""
        return self._read(epoch, start, stop, self.share, interrupted)

    def _read(self, epoch: int, start: int, stop: int, share: RankShare, interrupted: Callable[[], bool]) -> BatchShare:
        first = self.order.window_at(epoch, start)
        last = self.order.window_at(epoch, stop - 1)
        self._keep(epoch, first, last)
        loads = [self._load(epoch, index, interrupted) for index in range(first, last + 1)]
        present = [load.rows_present(start, stop) for load in loads]
        rows = sum(present)
        bounds = share.of(rows)
        spans, before = [], 0
        for n, load in enumerate(loads):
            low, high = (min(max(bound - before, 0), present[n]) for bound in bounds)
            spans.append(load.span_of(start, stop, low, high))
            before += present[n]
            if not load.holds(spans[n]):
                loads[n] = self._load(epoch, load.window.index, interrupted, whole=True)
        with self.stages.timed("collate", stop - start):
            labels, values = zip(*(load.part(span) for load, span in zip(loads, spans, strict=True)), strict=True)
            alone = len(loads) == 1
            label = labels[0] if alone else np.concatenate(labels)
            columns = values[0] if alone else np.concatenate(values, axis=1)
        part = RowBatch(
            label=label,
            dense=columns[: self._dense],
            buckets=columns[self._dense : self._dense + self._sparse],
            weight=columns[-1].view(np.float32) if self._weight else None,
            epoch=epoch,
            start=start + bounds[0],
            skipped=stop - start - rows,
            held_out=self._held_out,
        )
        return BatchShare(part=part, rows=rows, start=bounds[0])

    def _load(self, epoch: int, index: int, interrupted: Callable[[], bool], *, whole: bool = False) -> WindowLoad:
        """A window that is held, once it is ready; the `whole` of it if that is asked for or some of it is damaged."""
        with self._lock:
            if self._closed:
                raise CancelledError
            load = self._loads[epoch, index]
        awaited(load.ready, interrupted)
        if load.spans is not None and (whole or load.damaged):
            with self._lock:
                if self._closed:
                    raise CancelledError
                load = self._loads[epoch, index] = self._start(load.window, None)
            awaited(load.ready, interrupted)
        return load

    def close(self) -> None:
        """Stops the threads and waits for them, but not for a read that hangs; a `read` still waiting raises
        CancelledError."""
        with self._lock:
            self._closed = True
            for load in self._loads.values():
                load.ready.cancel()
        self._groups.close()
        self._pool.close()
        self._loads.clear()

    def _keep(self, epoch: int, first: int, last: int) -> None:
        """Holds exactly the windows first..last and the next `ahead`, and starts to read those it does not hold."""
        windows = list(islice(self._windows_from(epoch, first), last + 1 + self._ahead - first))
        with self._lock:
            if self._closed:
                raise CancelledError
            for stale in set(self._loads) - set(windows):
                self._loads.pop(stale).ready.cancel()
            new = [at for at in windows if at not in self._loads]
            if new:
                self._announce(windows)
            for at in new:
                window = self.order.window(*at)
                self._loads[at] = self._start(
                    window, self._wanted and self._wanted(window.epoch, window.start, window.stop)
                )

    def _announce(self, windows: list[tuple[int, int]]) -> None:
        """Says which shards are read for the windows `windows`, and then in the epoch after them."""
        epoch, last = windows[-1]
        later = islice(self._windows_from(epoch, last + 1), self.order.window_count())
        self._groups.expect(list(self._shards_of(windows)), self._shards_of(later))

    def _windows_from(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """Epoch and index of the windows from `index` of `epoch` on, up to the last epoch if there is one."""
        per_epoch = self.order.window_count()
        windows = (divmod(epoch * per_epoch + number, per_epoch) for number in count(index))
        return takewhile(lambda window: self._last_epoch is None or window[0] <= self._last_epoch, windows)

    def _shards_of(self, windows: Iterable[tuple[int, int]]) -> Iterator[int]:
        """The shard of each row group of windows, each given by epoch and index."""
        for epoch, index in windows:
            for group in self.order.window(epoch, index).groups:
                yield self.order.shard_of(int(group))[0]

    def _start(self, window: ShuffleWindow, spans: Spans | None) -> WindowLoad:
        rows = self.order.group_rows[window.groups]
        shuffled = self.order.shuffle == "rows"
        load = WindowLoad(window, rows, spans, self._columns, self._label_type, self._buffers, shuffled=shuffled)
        reads = [lambda k=k: self._read_group(load, k) for k in range(len(window.groups))]
        if shuffled:
            then_mix = lambda: self._mix(load)  # noqa: E731
            self._run(load, [lambda: self._find_order(load)], then=lambda: self._run(load, reads, then=then_mix))
        else:
            self._run(load, reads, then=lambda: self._finish(load))
        return load

    def _run(self, load: WindowLoad, tasks: list[Callable[[], None]], then: Callable[[], None]) -> None:
        """Runs `tasks` on the pool; the last to finish runs `then`. An error ends the load instead."""
        left = len(tasks)

        def run(task: Callable[[], None]) -> None:
            nonlocal left
            if load.ready.done():
                return
            try:
                task()
                with self._lock:
                    left -= 1
                    done = left == 0
                if done:
                    then()
            except Exception as error:  # crosses to the caller of `read`
                self._finish(load, error)

        for task in tasks:
            self._pool.submit(run, task)

    def _read_group(self, load: WindowLoad, k: int) -> None:
        """Decodes the k-th row group of a window into its columns."""
        group = int(load.window.groups[k])
        shard, index = self.order.shard_of(group)
        rows = slice(int(load.starts[k]), int(load.starts[k + 1]))
        try:
            order, taken = load.mixture.within[rows] if load.mixture else load.rows_of_group(), self.order.taken(group)
            if order is not None and not len(order) and self._on_damage == "fail":
                return  # damage in it is for the ranks to find that need it, which end the others too
            if taken is not None:
                order = taken if order is None else taken[order]
            columns, whole = list(load.read_values[:, rows]), self.order.rows_in_file(group)
            self._groups.read(shard, index, load.read_label[rows], columns, order, group_rows=whole)
        except FetchError:
            raise
        except ReadFailedError as error:  # of a disk or network that is down, whatever its rows are like
            raise ReadFailedError(
                f"{self._groups.name(shard)}: row group {index} cannot be read ({error}); see to its disk or network, "
                "then go on. A file that nobody will read again counts as damaged once it is deleted"
            ) from error
        except StorageError as error:
            damaged = DamagedRowsError(
                f"{self._groups.name(shard)}: row group {index} cannot be read ({error})",
                remedy='run `alphastream verify` on the data and preprocess it again, or set data.damaged = "skip"',
            )
            # Of rows that a rank does not look up it cannot tell; all must skip the same, or none.
            untold = isinstance(error, UnseenDamageError) and self.share.ranks > 1
            if self._on_damage == "fail" or untold:
                raise damaged from error
            with self._lock:
                self.damaged[group] = str(damaged)
                load.lose(rows)

    def _find_order(self, load: WindowLoad) -> None:
        with self.stages.timed("shuffle", 0):
            load.mixture = self.order.mixture(load.window, load.spans)
            if load.mixture:
                load.starts = load.mixture.starts

    def _mix(self, load: WindowLoad) -> None:
        """Brings the rows of a window, all read by now, into their order; they are shared out among the threads."""
        assert load.mixture
        places = load.mixture.places
        load.present = None if load.present is None else load.present[places]  # of a whole window alone

        def mix(rows: slice) -> None:
            with self.stages.timed("shuffle", rows.stop - rows.start):
                mix_rows(load.read_values, places[rows], load.values[:, rows])
                mix_rows(load.read_label[None], places[rows], load.label[None, rows])

        def finish() -> None:
            load.forget_order()
            self._finish(load)

        bounds = np.linspace(0, len(places), 2 * self._threads + 1).astype(int).tolist()
        tasks = [lambda rows=slice(*bound): mix(rows) for bound in pairwise(bounds)]
        self._run(load, tasks, then=finish)

    def _finish(self, load: WindowLoad, error: Exception | None = None) -> None:
        with self._lock:
            if load.ready.done():
                return
            if error is None:
                load.ready.set_result(None)
            else:
                load.ready.set_exception(error)
