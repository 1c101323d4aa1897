"""Pairs of batches as model inputs on the device, made ahead of time on a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torchdata.nodes import BaseNode, Prefetcher

from pipeline.device.model_inputs import ModelInputs
from pipeline.device.ring import Uploader
from pipeline.device.streams import hand_over
from pipeline.errors import InputError, InterruptedWaitError, NoRowsYetError
from pipeline.reads import POLL_SECONDS, never
from pipeline.rows import BatchPair, GrowingLog, OncePerBatch, RowPosition
from pipeline.schema import LogFormat
from pipeline.stages import StageTotals


@dataclass(frozen=True, eq=False, kw_only=True)
class DevicePair:
    """A `BatchPair` as model inputs on the device; with sliding pairs the next `b2` may share this `b1`'s memory.

    With several ranks `b1` and `b2` are this rank's shares, maybe empty: rows [b2_start, b2_start + b2.rows) of a batch
    of `b2_rows`. All else is the same on every rank.
    """

    b1: ModelInputs
    b2: ModelInputs
    b1_rows: int
    """Rows of `b1` over all ranks."""
    b1_start: int
    """Which of them the first of `b1` is; this and `b2_start` alone differ between ranks."""
    b2_rows: int
    """Rows of `b2` over all ranks."""
    b2_start: int
    """Which of them the first of `b2` is."""
    fresh: bool
    """Whether no row of `b1` has been trained on in this epoch; make no estimate if it is False."""
    epoch: int
    start: int
    """Where in the epoch's sequence the batch that `b2` is of starts."""
    position: RowPosition
    skipped: int

    @property
    def rows(self) -> int:
        """Rows that the step trains on, over all ranks: `b2_rows`."""
        return self.b2_rows

    @classmethod
    def of(cls, pair: BatchPair, *, b1: ModelInputs, b2: ModelInputs, skipped: int) -> DevicePair:
        """`pair` with its batches on the device, after `skipped` rows of damaged row groups."""
        return cls(
            b1=b1,
            b2=b2,
            b1_rows=pair.b1_rows,
            b1_start=pair.b1_start,
            b2_rows=pair.b2_rows,
            b2_start=pair.b2_start,
            fresh=pair.fresh,
            epoch=pair.b2.epoch,
            start=pair.start,
            position=pair.position,
            skipped=skipped,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamWait:
    """The caller's stream waiting for a pair to be complete, between two timing events."""

    began: torch.cuda.Event
    ended: torch.cuda.Event
    began_at: int
    """When the host recorded `began`, in nanoseconds of `time.perf_counter_ns`."""


class Made(NamedTuple):
    """A pair and the event after which its tensors are complete (None: they are)."""

    pair: DevicePair
    ready: torch.cuda.Event | None


class PairMaker(Protocol):
    """Makes one device pair after another, on one thread."""

    def make(self) -> Made:
        """The next pair. Raises: what `HostPairs` raises."""
        ...

    def close(self) -> None:
        """Lets go of everything it holds; called once, after the last `make`."""
        ...


class PairUploader:
    """Makes pairs by an uploader; with sliding pairs each row is uploaded once."""

    def __init__(self, pairs: Iterator[BatchPair], uploader: Uploader) -> None:
        self._pairs, self._uploader = pairs, uploader
        self._upload = OncePerBatch(uploader.upload)

    def make(self) -> Made:
        pair = next(self._pairs)
        b1, b2 = self._upload(pair)
        return Made(DevicePair.of(pair, b1=b1, b2=b2, skipped=pair.skipped), self._uploader.mark())

    def close(self) -> None:
        """Nothing to do: all it holds is memory."""


class Closable(Protocol):
    """What the rows of a node come from."""

    def close(self) -> None:
        """Ends it; a read under way raises an error."""
        ...


class PairNode(BaseNode["Made | Exception"]):
    """Node of the pairs of a maker; an error is its last item, so that it arrives as it was raised."""

    def __init__(self, reader: Closable, maker: PairMaker, *, dry: Callable[[], bool] = never) -> None:
        """`dry`: whether the maker waits for rows that nobody has added yet."""
        super().__init__()
        self.made = 0
        self.dry = dry
        self._reader, self._maker = reader, maker
        self._ended = False
        self._thread: threading.Thread | None = None
        self._items = 0
        self._another = threading.Condition()

    def next(self) -> Made | Exception:
        self._thread = threading.current_thread()
        if self._ended:
            raise StopIteration
        try:
            item = self._maker.make()
        except Exception as error:
            self._ended = True
            item = error
        else:
            self.made += 1
        with self._another:
            self._items += 1
            self._another.notify_all()
        return item

    def wait_for(self, items: int, interrupted: Callable[[], bool], *, seconds: float = math.inf) -> bool:
        """Waits until so many items, an error included, were given out; whether they were within `seconds`.

        Raises: InterruptedWaitError once `interrupted` while they are waited for; NoRowsYetError once `dry` is.
        """
        end = time.monotonic() + seconds
        with self._another:
            while self._items < items:
                if self.dry():
                    raise NoRowsYetError
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._another.wait(min(left, POLL_SECONDS))
                if self._items < items and interrupted():
                    raise InterruptedWaitError
        return True

    def get_state(self) -> dict[str, Any]:
        return {}  # the feed knows its position

    def stop(self) -> None:
        """Ends the node and the reader's threads; a `next` under way ends with an error."""
        self._ended = True
        self._reader.close()

    def join(self) -> None:
        """Waits for the thread that called `next`, and closes the maker."""
        if self._thread is not None:
            self._thread.join()
        self._maker.close()


class Feed:
    """Pairs on the device without end, epoch after epoch, from a position on; made ahead of time on a thread.

    `state_dict` tells where the last pair handed out ends, whatever has been prefetched beyond it; a feed that
    loads it gives exactly the pairs that this one would have given next. Errors of the threads reach the caller of
    `next`. Use it as a context manager, or call `close`: it leaves no thread behind.
    """

    def __init__(
        self,
        make_node: Callable[[RowPosition], PairNode],
        *,
        position: RowPosition,
        rows_of: Callable[[int], int | None],
        steps_per_epoch: int | None,
        log_format: LogFormat,
        stages: StageTotals,
        prefetch_batches: int,
        log: GrowingLog | None = None,
        held_out_rows: int = 0,
        sources: Callable[[int, int, int], dict[str, int]] = lambda epoch, start, stop: {},
    ) -> None:
        """`rows_of` an epoch by its number: None if it isn't known yet. `sources` is the method of that name; without
        it nothing is known of where rows come from.
        """
        self.sources = sources
        """Shards that rows [start, stop) of an epoch's sequence come from, each with how many of them: (epoch, start,
        stop) → name → rows."""
        self.format = log_format
        self.steps_per_epoch = steps_per_epoch
        """Pairs of an epoch; None for a log that is followed, whose generations differ."""
        self.log = log
        """The log whose generations are followed: each is one epoch, and the next is waited for."""
        self.held_out_rows = held_out_rows
        """Rows of the split that are never trained on, and probe in turn."""
        self.skipped_rows = 0
        """Rows of damaged row groups passed over so far, those before a resume included."""
        self.last_wait: StreamWait | None = None
        """Of the caller's stream for the last pair; None: that was complete. The host waits for no copy."""
        self._make_node, self._stages, self._prefetch = make_node, stages, prefetch_batches
        self._rows_of = rows_of
        self.interrupted: Callable[[], bool] = never
        """Whether a wait for rows, the caller's of `next` and `fill`, is to end before they come."""
        self._running: tuple[PairNode, Prefetcher[Made | Exception]] | None = None
        self._handed_out = 0
        self._position = self._checked(position)

    @property
    def position(self) -> RowPosition:
        """Where the last pair handed out ends."""
        return self._position

    def __iter__(self) -> Feed:
        return self

    def fill(self, *, seconds: float = math.inf) -> bool:
        """Waits for the first pair, which `next` then gives: for what it costs to begin, compilation included.

        Returns whether it is there after `seconds`. Does nothing once the feed is going. An error waits for `next`.
        Raises: InterruptedWaitError and NoRowsYetError, as `next` does.
        """
        return self._handed_out > 0 or self._going()[0].wait_for(1, self.interrupted, seconds=seconds)

    def __next__(self) -> DevicePair:
        """The next pair.

        Raises: InterruptedWaitError once `interrupted` while it is waited for, and NoRowsYetError if it has to wait for
        a generation that isn't there yet; it comes next time.
        """
        self._going()[0].wait_for(self._handed_out + 1, self.interrupted)
        item = next(self._going()[1])  # no name for the prefetcher, which `close` lets go of
        if isinstance(item, Exception):
            self.close()
            raise item
        pair, ready = item
        self.last_wait = None if ready is None else _stream_wait(pair, ready)
        self._handed_out += 1
        self._position = pair.position
        self.skipped_rows += pair.skipped
        return pair

    def await_rows(self, seconds: float) -> bool:
        """After NoRowsYetError: waits until rows are on their way for `next`; whether they are after `seconds`.

        Raises: InterruptedWaitError once `interrupted`.
        """
        node, end = self._going()[0], time.monotonic() + seconds
        while node.dry():
            if self.interrupted():
                raise InterruptedWaitError
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, POLL_SECONDS))
        return True

    def state_dict(self) -> dict[str, int]:
        """Where the last pair handed out ends, and the rows skipped until there, as JSON values."""
        return {"epoch": self._position.epoch, "row": self._position.row, "skipped_rows": self.skipped_rows}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where `state` was taken, whatever batch size, ranks or prefetch depth it was taken with.

        Raises: InputError for a position that the data does not have.
        """
        position = self._checked(RowPosition(epoch=state["epoch"], row=state["row"]))
        self.close()
        self._position, self.skipped_rows = position, state["skipped_rows"]

    def queued_batches(self) -> int:
        """Pairs that wait, ready, for the trainer."""
        return self._running[0].made - self._handed_out if self._running else 0

    def stage_totals(self) -> dict[str, tuple[float, int]]:
        """(seconds, rows) of each stage so far, seconds added up over threads."""
        return self._stages.totals()

    def close(self) -> None:
        """Stops the threads and waits for them, but not for a read that hangs; `next` afterwards starts anew at
        `position`."""
        if self._running is not None:
            source = self._running[0]
            source.stop()
            # the prefetcher goes with its last reference, and tells its thread to end
            self._running = None
            source.join()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _going(self) -> tuple[PairNode, Prefetcher[Made | Exception]]:
        """What makes the pairs, set going if it isn't."""
        if self._running is None:
            source = self._make_node(self._position)
            prefetched = Prefetcher(source, self._prefetch, snapshot_frequency=0)
            prefetched.reset()
            self._running, self._handed_out = (source, prefetched), 0
        return self._running

    def _checked(self, position: RowPosition) -> RowPosition:
        rows = self._rows_of(max(position.epoch, 0)) or 0
        if position.epoch < 0 or not 0 <= position.row < max(rows, 1 if self.log else 0):
            where = f"generation of {rows} rows" if self.log else f"data of {rows} rows"
            raise InputError(
                f"row {position.row} of epoch {position.epoch} is not in this {where}; continue with the data that the "
                "run was started on"
            )
        return position


def _stream_wait(pair: DevicePair, ready: torch.cuda.Event) -> StreamWait:
    """Lets the current stream wait for `pair`, and keep its memory from being handed out before it is through with it.

    The host does not wait.
    """
    stream = torch.cuda.current_stream(pair.b2.label.device)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began_at = time.perf_counter_ns()
    began.record(stream)
    hand_over((*pair.b1.tensors(), *pair.b2.tensors()), ready)
    ended.record(stream)
    return StreamWait(began=began, ended=ended, began_at=began_at)
