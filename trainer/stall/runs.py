"""The three runs of `alphastream stall`: the training loop itself on cached, prefetched and cold rows."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ops.step_clock import NANOSECONDS, StepClock, StepTiming
from pipeline.device import DevicePair, Feed
from pipeline.errors import StorageError
from pipeline.shards import Manifest, cache_folder, kept_cold, why_not_dropped
from stepsize.estimate import Estimate
from trainer.config import Config, ConfigError
from trainer.console import Console, ProgressLine
from trainer.job import Parts
from trainer.learner import scheduled_rate
from trainer.loop import BudgetConfig, EvalConfig, Loop, Pairs, Stop
from trainer.stall.comparison import RunTimes, StallReport, StepSample, compare, times, whole_windows
from trainer.step import TrainStep

LEAST_STEPS = 10
"""Steps that are measured even where they take longer than they should."""

Rows = Literal["cold", "warm", "compute"]
"""Where a run's rows come from: the disk or the remote store, the page cache, or one pair on the device, repeated."""


@dataclass(frozen=True, kw_only=True)
class StallPlan:
    """How long to measure, and what of the pipeline the accounting needs to know."""

    steps: int | None
    """Steps of each run; None: as many as the first run makes in `seconds`, in whole windows where it gets so far."""
    seconds: float
    warmup_steps: int
    """Steps at the start of each run that are not measured."""
    window_rows: float
    """Mean rows of a window that the reader shuffles."""
    reader_threads: int
    no_cold_run: str | None = None
    """Why the page cache cannot be dropped; None: it can."""


@dataclass(kw_only=True)
class Stopwatch:
    """The loop's observer in a run: keeps each step's time, and knows when there are enough."""

    warmup_steps: int
    enough: Callable[[list[StepSample]], bool]
    line: ProgressLine
    stage_totals: Callable[[], dict[str, tuple[float, int]]]
    samples: list[StepSample]
    _seen: int = 0
    _before: dict[str, tuple[float, int]] | None = None

    def on_step(self, record: Mapping[str, Any], timing: StepTiming, training_seconds: float) -> None:
        self._seen += 1
        if self._seen > self.warmup_steps:
            waiting = timing.phases["data_wait"] + timing.phases["transfer"]
            self.samples.append(StepSample(seconds=timing.seconds, waiting=waiting, rows=record["rows"]))
            self.line.update(len(self.samples), f"{record['rows'] / timing.seconds:,.0f} rows/s")
        elif self._seen == self.warmup_steps:
            self._before = self.stage_totals()

    def done(self) -> bool:
        return self._seen >= self.warmup_steps and self.enough(self.samples)

    def stages(self) -> dict[str, tuple[float, int]]:
        """(seconds, rows) of each stage since the warm-up; of the whole run for one that had no rows since."""
        before, totals = self._before or {}, {}
        for stage, (seconds, rows) in self.stage_totals().items():
            seconds_before, rows_before = before.get(stage, (0.0, 0))
            past = rows > rows_before
            totals[stage] = (seconds - seconds_before, rows - rows_before) if past else (seconds, rows)
        return totals

    def on_pause(self, timing: StepTiming) -> None:
        pass

    def on_estimate(self, estimate: Estimate) -> None:
        pass

    def on_message(self, message: str, *, step: int) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What the compute run repeats of a pair that another run had."""

    probe_rows: int
    rows: int
    fresh: bool


class _Watched:
    """A feed whose pairs' shapes are remembered."""

    def __init__(self, feed: Feed) -> None:
        self.shapes: list[_Shape] = []
        self.last_transfer_seconds = 0.0
        self._feed = feed

    def __next__(self) -> DevicePair:
        pair = next(self._feed)
        self.last_transfer_seconds = self._feed.last_transfer_seconds
        self.shapes.append(_Shape(probe_rows=pair.b1.rows, rows=pair.rows, fresh=pair.fresh))
        return pair


class _Cached:
    """One pair on the device, handed out again and again in the shapes of another run's pairs."""

    last_transfer_seconds = 0.0

    def __init__(self, pair: DevicePair, shapes: Iterable[_Shape]) -> None:
        self._pair, self._shapes = pair, iter(shapes)

    def __next__(self) -> DevicePair:
        shape = next(self._shapes)
        b1, b2 = self._pair.b1.head(shape.probe_rows), self._pair.b2.head(shape.rows)
        return replace(self._pair, b1=b1, b2=b2, rows=b2.rows, fresh=shape.fresh)


def measure_stall(
    config: Config, *, steps: int | None, seconds: float, warmup_steps: int, console: Console
) -> StallReport:
    """Where the time of `config`'s steps goes, from three runs of `steps` steps, or of about `seconds` each.

    Reads the shards and writes nothing, except that shards of a remote folder are cached; their cold run begins with
    an empty cache of its own, removed afterwards. Raises: as `trainer.job.daemon.train`.
    """
    manifest = Manifest.load(config.data.path)
    shards = manifest.splits["train"].shards
    remote = not isinstance(manifest.folder, Path)
    paths = [] if remote else [manifest.root / shard.path for shard in shards]
    groups = sum(len(shard.row_groups) for shard in shards)
    windows = math.ceil(groups / (config.data.shuffle_row_groups if config.data.shuffle == "rows" else 1))
    plan = StallPlan(
        steps=steps,
        seconds=seconds,
        warmup_steps=warmup_steps,
        window_rows=manifest.splits["train"].rows / max(windows, 1),
        reader_threads=config.data.reader_threads,
        no_cold_run=why_not_dropped(paths[0]) if paths else None,
    )

    def make_parts(rows: Rows, stack: ExitStack) -> Parts:
        if rows != "cold":
            return Parts(config, stack)
        if not remote:
            stack.enter_context(kept_cold(paths))
            return Parts(config, stack)
        empty = stack.enter_context(_empty_folder(cache_folder(config.data.cache_path)))
        return Parts(replace(config, data=replace(config.data, cache_path=empty)), stack)

    return StallMeasurement(config, plan, make_parts=make_parts, console=console).run()


class StallMeasurement:
    """The same training run, from its start, with its rows from three places."""

    def __init__(
        self,
        config: Config,
        plan: StallPlan,
        *,
        make_parts: Callable[[Rows, ExitStack], Parts],
        console: Console,
        nanosecond_time: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`make_parts` builds everything anew for each run, so that all three start alike."""
        self._config, self._plan, self._make_parts, self._console = config, plan, make_parts, console
        self._now = nanosecond_time
        self._steps = plan.steps
        self._shapes: list[_Shape] = []

    def run(self) -> StallReport:
        """Cold first, which also tells how many steps there is time for; then warm; then computing alone.

        Raises: ConfigError where training diverges, and whatever the parts raise.
        """
        plan = self._plan
        cold = None if plan.no_cold_run else self._measure("cold")
        warm = self._measure("warm")
        compute = self._measure("compute")
        return compare(compute, warm, cold, reader_threads=plan.reader_threads, no_cold_run=plan.no_cold_run)

    def _measure(self, rows: Rows) -> RunTimes:
        plan = self._plan
        with ExitStack() as stack:
            parts = self._make_parts(rows, stack)
            if rows == "warm":
                self._read_ahead(parts.feed)
            line = stack.enter_context(self._console.progress(f"{rows} run", self._steps, unit="steps"))
            watch = Stopwatch(
                warmup_steps=plan.warmup_steps,
                enough=self._enough,
                line=line,
                stage_totals=parts.feed.stage_totals,
                samples=[],
            )
            pairs: Pairs
            if rows == "compute":
                pair = next(parts.feed)
                parts.feed.close()
                pairs = _Cached(pair, _forever(self._shapes))
            else:
                pairs = _Watched(parts.feed)
            self._train(parts, pairs, watch)
            stages = {} if rows == "compute" else watch.stages()
        if self._steps is None:
            self._steps = whole_windows([sample.rows for sample in watch.samples], plan.window_rows)
        if isinstance(pairs, _Watched):
            self._shapes = pairs.shapes
        measured = times(rows, watch.samples[: self._steps], stages, reader_threads=plan.reader_threads)
        self._console.say(
            f"{rows} run: {measured.steps:,} steps of {1000 * measured.seconds_per_step:,.2f} ms, "
            f"{1000 * measured.waiting_per_step:,.2f} ms of it waiting for rows"
        )
        return measured

    def _enough(self, samples: list[StepSample]) -> bool:
        if self._steps is not None:
            return len(samples) >= self._steps
        return len(samples) >= LEAST_STEPS and math.fsum(s.seconds for s in samples) >= self._plan.seconds

    def _train(self, parts: Parts, pairs: Pairs, watch: Stopwatch) -> None:
        clock = StepClock(nanosecond_time=self._now)
        schedule, total_steps, peak = self._config.schedule, parts.total_steps, parts.peak
        step = TrainStep(
            model=parts.model, optimizer=parts.optimizer, worker=parts.worker, average=parts.average, clock=clock
        )
        loop = Loop(
            feed=pairs,
            train_step=step,
            policy=parts.policy,
            worker=parts.worker,
            clock=clock,
            observer=watch,
            budget=BudgetConfig(),
            evaluation=EvalConfig(),
            total_steps=None,
            checkpoint_every_steps=None,
            checkpoint_every_seconds=None,
            scheduled_rate=lambda step: scheduled_rate(schedule, step=step, total_steps=total_steps, peak=peak),
            evaluate=lambda: None,
            save=lambda final: None,
            stopping=watch.done,
        )
        if loop.run() is Stop.DIVERGED:
            raise ConfigError(
                f"training diverges within {loop.position.step:,} steps, and steps on nonfinite numbers tell nothing "
                "about time; lower optimizer.lr"
            )

    def _read_ahead(self, feed: Feed) -> None:
        """Brings the rows of the warm run into the page cache by reading them, without computing."""
        start, steps = feed.state_dict(), self._steps or math.inf
        end = self._now() + self._plan.seconds * NANOSECONDS
        with self._console.progress("filling the page cache", self._steps, unit="steps") as line:
            for done, _ in enumerate(feed, 1):
                line.update(min(done, steps))
                if done >= steps + self._plan.warmup_steps or self._now() >= end:
                    break
        feed.load_state_dict(start)


@contextmanager
def _empty_folder(parent: Path) -> Iterator[str]:
    """One that is removed afterwards, also where SIGTERM ends the program, on the disk that `parent` is on."""
    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(TemporaryDirectory(prefix="stall-", dir=parent))
        except OSError as error:
            raise StorageError(
                f"{parent} cannot be written ({error.strerror}); set data.cache_path elsewhere"
            ) from error
        yield folder


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does. Outside the main thread: nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forever(shapes: list[_Shape]) -> Iterator[_Shape]:
    """`shapes`, then its last again and again, for the steps that are under way when the run is told to stop."""
    yield from shapes
    while True:
        yield shapes[-1]
