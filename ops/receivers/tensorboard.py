"""Curves for TensorBoard: the event files that it reads, written by a thread that training never waits for.

For example:

    with TensorBoard(Path("RUN/tensorboard"), every_steps=10, alpha_delay=0, warn=print) as curves:
        curves.begin(steps=0)
        curves.step(1, loss=0.52, learning_rate=1e-3, seconds=0.01, phases={"forward": 0.01})

The abscissa of every curve is the number of steps done. The format (records with checksums, which hold protocol
buffers) is written by the package `tensorboard`, imported when the first file is.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

FLUSH_SECONDS = 5.0
"""So old is what TensorBoard can see."""
MOST_WAITING = 20_000
"""Events that wait for a slow disk; beyond it the oldest are dropped."""
RETRY_SECONDS = 60.0
"""After a failure a new file is begun so much later."""
LEAVE_SECONDS = 5.0
"""So long the end of a run waits for its last events to be written."""

NAME = "events.out.tfevents"

Event = tuple[float, int, Mapping[str, float]]
"""Unix time, steps done, values by tag."""


class TensorBoard:
    """A run's curves; without a folder none are kept. Neither a missing folder nor a full disk ends the run."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        every_steps: int = 1,
        alpha_delay: int = 0,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Curves get a point every `every_steps` steps; α* is drawn where it acts, `alpha_delay` steps after its own.

        `warn` is told, from a thread, that what could not be written is lost; once.

        Raises: ValueError if the package `tensorboard` is not installed, where it is needed.
        """
        if folder is not None and find_spec("tensorboard") is None:
            raise ValueError(
                "metrics.tensorboard_every_steps needs tensorboard, which is not installed; install the extra: "
                "pip install 'alphastream[tensorboard]'"
            )
        self._events = None if folder is None else EventFiles(folder, warn)
        self._every_steps = every_steps
        self._alpha_delay = alpha_delay
        self._window: list[tuple[float, float, Mapping[str, float]]] = []

    def begin(self, *, steps: int) -> None:
        """Goes on after `steps` steps: what was drawn beyond them, by an earlier process or by this one before it went
        back, is not shown any more.
        """
        self._window.clear()
        if self._events is not None:
            self._events.start(steps + 1)

    def step(
        self, steps: int, *, loss: float, learning_rate: float, seconds: float, phases: Mapping[str, float]
    ) -> None:
        """The last of `steps` steps: its loss, its wall time and that by phase, drawn as means since the last point."""
        if self._events is None:
            return
        self._window.append((loss, seconds, phases))
        if steps % self._every_steps == 0:
            losses, times, parts = zip(*self._window, strict=True)
            values = {"loss/train": _mean(losses), "learning_rate": learning_rate, "seconds/step": _mean(times)}
            values |= {f"seconds/{name}": _mean([part[name] for part in parts]) for name in phases}
            self._events.put(steps, values)
            self._window.clear()

    def estimate(self, step: int, *, relative: float | None, absolute: float | None, pooled: float | None) -> None:
        """α* of `step`, counted from 0, and pooled over the latest ones; None is not drawn."""
        if self._events is not None:
            values = {"alpha/relative": relative, "alpha/absolute": absolute, "alpha/pooled_relative": pooled}
            self._events.put(step + 1 + self._alpha_delay, _known(values))

    def evaluation(
        self, steps: int, split: str, *, loss: float, auc: float | None, normalized_entropy: float | None
    ) -> None:
        """An evaluation after `steps` steps; None is not drawn."""
        if self._events is not None:
            values = {"loss": loss, "auc": auc, "normalized_entropy": normalized_entropy}
            self._events.put(steps, {f"{name}/{split}": value for name, value in _known(values).items()})

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()


class EventFiles:
    """A folder of event files, one for each process and for each failure of the disk, written in a thread.

    `put` only leaves the event in a bounded queue, `start` only the step from which points are drawn anew; both are
    called by one thread. A file whose writing failed is left as it is, since nothing can be read behind half a record;
    what it held back is lost, and told once.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._waiting: deque[Event] = deque(maxlen=MOST_WAITING)
        self._ending, self._warned = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        """Of `_first_step` with `_waiting`: which points wait depends on where they are drawn anew from."""
        self._first_step: int | None = None
        """Points from here on that lie in the files so far are not to be shown; None if that is written down."""
        self._file: tuple[BinaryIO, Any] | None = None
        self._retry_at = -math.inf

    def start(self, first_step: int) -> None:
        """Begin to write, or go back: points so far from `first_step` on are not shown any more."""
        with self._lock:
            self._draw_anew_from(first_step)
            kept = [event for event in self._waiting if event[1] < first_step]
            self._waiting.clear()
            self._waiting.extend(kept)
        if self._thread is None:
            # a daemon: a disk that hangs must not keep the process
            self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
            self._thread.start()

    def _draw_anew_from(self, first_step: int) -> None:
        """The caller holds the lock."""
        self._first_step = first_step if self._first_step is None else min(first_step, self._first_step)

    def put(self, steps: int, values: Mapping[str, float]) -> None:
        """One point of each tag's curve."""
        if values:
            if len(self._waiting) == MOST_WAITING:
                self._tell("the disk is too slow for them")
            self._waiting.append((time.time(), steps, values))

    def close(self) -> None:
        """Write what waits, if the disk takes it within `LEAVE_SECONDS`."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(FLUSH_SECONDS):
            self._write_waiting()
        self._retry_at = -math.inf
        self._write_waiting()
        self._leave_file()

    def _write_waiting(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        begun: list[int] = []
        try:
            file, writer = self._file or self._begin_file()
            for _ in range(len(self._waiting) + 1):
                with self._lock:
                    first_step, self._first_step = self._first_step, None
                    event = self._waiting.popleft() if first_step is None and self._waiting else None
                if first_step is not None:
                    begun.append(first_step)
                    writer.write(_session_start(first_step))
                if event is not None:
                    writer.write(_encoded(*event))
            file.flush()
        except (OSError, ImportError) as error:
            with self._lock:
                for first_step in begun:
                    self._draw_anew_from(first_step)
            self._leave_file()
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._tell(str(error))

    def _begin_file(self) -> tuple[BinaryIO, Any]:
        messages = import_module("tensorboard.compat.proto.event_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        file = self._new_path().open("xb")
        self._file = file, records.RecordWriter(file)
        self._file[1].write(messages.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        return self._file

    def _new_path(self) -> Path:
        """Behind the names that are there, even if the system's clock went back: files are read in that order."""
        stamps = [path.name.split(".")[3:5] for path in self._folder.glob(f"{NAME}.*")]
        latest = max((int("".join(stamp)) for stamp in stamps if "".join(stamp).isdecimal()), default=0)
        seconds, nanoseconds = divmod(max(time.time_ns(), latest + 1), 10**9)
        return self._folder / f"{NAME}.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"

    def _leave_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file[0].close()
            except OSError as error:  # what is buffered still does not fit
                self._tell(str(error))

    def _tell(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"{self._folder}: TensorBoard will not see all of this run ({reason}); training goes on")


def _session_start(first_step: int) -> bytes:
    """From where TensorBoard drops the points that it has read so far, of every curve."""
    events = import_module("tensorboard.compat.proto.event_pb2")
    session = events.SessionLog(status=events.SessionLog.SessionStatus.START)
    return events.Event(wall_time=time.time(), step=first_step, session_log=session).SerializeToString()


def _encoded(unix_time: float, steps: int, values: Mapping[str, float]) -> bytes:
    events = import_module("tensorboard.compat.proto.event_pb2")
    summaries = import_module("tensorboard.compat.proto.summary_pb2")
    points = [summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    summary = summaries.Summary(value=points)
    return events.Event(wall_time=unix_time, step=steps, summary=summary).SerializeToString()


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
