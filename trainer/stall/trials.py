"""The three trials of `alphastream stall`: the training loop itself on cold rows, on cached ones and on one pair."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ops.step_clock import NANOSECONDS, StepTiming
from pipeline.device import Feed
from pipeline.errors import StorageError
from pipeline.shards import Manifest, cache_folder, kept_cold, why_not_dropped
from stepsize.estimate import Estimate
from trainer.config import Config, ConfigError
from trainer.console import Console, ProgressLine
from trainer.divergence import Divergence
from trainer.job import TrainingState, open_training, step_clock
from trainer.loop import Pairs, Position, Stop, Timetable
from trainer.process import SignalDesk
from trainer.stall.comparison import StallReport, StepSample, TrialTimes, compare, times, whole_windows
from trainer.stall.pairs import PairShape, RememberedPairs, RepeatedPair

LEAST_STEPS = 10
"""Steps that are measured even if they take longer than they should."""

Rows = Literal["cold", "warm", "compute"]
"""Where a trial's rows come from: the disk or the remote store, the page cache, or one pair on the device, repeated."""


@dataclass(frozen=True, kw_only=True)
class StallSetup:
    """How long to measure, and what of the pipeline the accounting needs to know."""

    steps: int | None
    """Steps of each trial; None: as many as the first makes in `seconds`, in whole windows if it gets so far."""
    seconds: float
    warmup_steps: int
    """Steps at the start of each trial that are not measured."""
    window_rows: float
    """Mean rows of a window, which is what the reader shuffles together."""
    reader_threads: int
    no_cold_trial: str | None = None
    """Why the page cache cannot be dropped; None: it can."""


@dataclass(kw_only=True)
class Stopwatch:
    """The loop's observer and host in a trial: keeps each step's time, and stops it once there are enough."""

    warmup_steps: int
    enough: Callable[[list[StepSample]], bool]
    line: ProgressLine
    stage_totals: Callable[[], dict[str, tuple[float, int]]]
    samples: list[StepSample]
    scored: Callable[[int], object] = lambda _: None
    """Takes what was scored of the batches up to a step, so that it doesn't pile up."""
    _seen: int = 0
    _before: dict[str, tuple[float, int]] | None = None

    def on_step(self, record: Mapping[str, Any], timing: StepTiming, training_seconds: float) -> None:
        self._seen += 1
        self.scored(record["step"])
        if self._seen > self.warmup_steps:
            waiting = timing.phases["data_wait"] + timing.phases["transfer"]
            self.samples.append(StepSample(seconds=timing.seconds, waiting=waiting, rows=record["rows"]))
            self.line.update(len(self.samples), f"{record['rows'] / timing.seconds:,.0f} rows/s")
        elif self._seen == self.warmup_steps:
            self._before = self.stage_totals()

    def stopping(self) -> bool:
        return self._seen >= self.warmup_steps and self.enough(self.samples)

    def stages(self) -> dict[str, tuple[float, int]]:
        """(seconds, rows) of each stage since the warm-up; of the whole trial for one that had no rows since."""
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

    def evaluate(self, position: Position) -> None:
        pass

    def save(self, position: Position, *, final: bool) -> None:
        pass

    def agree(self, position: Position, *, scheduled: bool) -> None:
        pass

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        return scheduled

    def poll_save(self) -> None:
        pass

    def broken_weights(self) -> None:
        """Nothing is saved."""

    def roll_back(self, position: Position, divergence: Divergence) -> bool:
        """Never: a trial that diverges ends."""
        return False

    def save_asked(self) -> bool:
        return False

    def drain_save(self) -> None:
        pass

    def await_rows(self, position: Position) -> bool:
        return False


def measure_stall(
    config: Config, *, steps: int | None, seconds: float, warmup_steps: int, console: Console
) -> StallReport:
    """Where the time of `config`'s steps goes, from three trials of `steps` steps, or of about `seconds` each.

    Reads the shards, those of all generations alike, and writes nothing, except that shards of a remote folder are
    cached; their cold trial begins with an empty cache of its own, removed afterwards. Raises: as `trainer.job.train`.
    """
    # rows that are not there yet have no speed; that those that are there are scored has its part in it
    scored = config.data.follow if config.eval.progressive is None else config.eval.progressive
    evaluation = replace(config.eval, progressive=scored)
    config = replace(config, data=replace(config.data, follow=False), eval=evaluation)
    manifest = Manifest.load(config.data.path)
    shards = manifest.splits["train"].shards
    remote = not isinstance(manifest.folder, Path)
    paths = [] if remote else [manifest.root / shard.path for shard in shards]
    groups = sum(len(shard.row_groups) for shard in shards)
    windows = math.ceil(groups / (config.data.shuffle_row_groups if config.data.shuffle == "rows" else 1))
    setup = StallSetup(
        steps=steps,
        seconds=seconds,
        warmup_steps=warmup_steps,
        window_rows=manifest.splits["train"].rows / max(windows, 1),
        reader_threads=config.data.reader_threads,
        no_cold_trial=why_not_dropped(paths[0]) if paths else None,
    )

    @contextmanager
    def open_state(rows: Rows) -> Iterator[TrainingState]:
        with ExitStack() as stack:
            chosen = config
            if rows == "cold" and remote:
                empty = stack.enter_context(_empty_folder(cache_folder(config.data.cache_path)))
                chosen = replace(config, data=replace(config.data, cache_path=empty))
            elif rows == "cold":
                stack.enter_context(kept_cold(paths))
            yield stack.enter_context(open_training(chosen, manifest))

    return StallMeasurement(setup, open_state=open_state, console=console).run()


class StallMeasurement:
    """The same training, from its start, with its rows from three places."""

    def __init__(
        self,
        setup: StallSetup,
        *,
        open_state: Callable[[Rows], AbstractContextManager[TrainingState]],
        console: Console,
        nanosecond_time: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`open_state` builds everything anew for each trial, so that all three start alike."""
        self._setup, self._open_state, self._console = setup, open_state, console
        self._now = nanosecond_time
        self._steps = setup.steps
        self._shapes: list[PairShape] = []

    def run(self) -> StallReport:
        """Cold first, which also tells how many steps there is time for; then warm; then computing alone.

        Raises: ConfigError if training diverges, and whatever building the state or reading raises.
        """
        setup = self._setup
        cold = None if setup.no_cold_trial else self._measure("cold")
        warm = self._measure("warm")
        compute = self._measure("compute")
        return compare(compute, warm, cold, reader_threads=setup.reader_threads, no_cold_trial=setup.no_cold_trial)

    def _measure(self, rows: Rows) -> TrialTimes:
        setup = self._setup
        with self._open_state(rows) as state, ExitStack() as stack:
            if rows == "warm":
                self._read_ahead(state.feed)
                if (notice := state.learner.precision.without_effect()) is not None:  # once: this trial is always made
                    self._console.warn(notice)
            line = stack.enter_context(self._console.progress(f"{rows} trial", self._steps, unit="steps"))
            watch = Stopwatch(
                warmup_steps=setup.warmup_steps,
                enough=self._enough,
                line=line,
                stage_totals=state.feed.stage_totals,
                samples=[],
            )
            if state.progressive is not None:
                watch.scored = state.progressive.take
            if rows == "compute":
                pair = next(state.feed)
                state.feed.close()
                self._train(state, RepeatedPair(pair, self._shapes), watch)
                stages = {}
            else:
                pairs = RememberedPairs(state.feed)
                self._train(state, pairs, watch)
                stages, self._shapes = watch.stages(), pairs.shapes
        if self._steps is None:
            self._steps = whole_windows([sample.rows for sample in watch.samples], setup.window_rows)
        measured = times(rows, watch.samples[: self._steps], stages, reader_threads=setup.reader_threads)
        self._console.say(
            f"{rows} trial: {measured.steps:,} steps of {1000 * measured.seconds_per_step:,.2f} ms, "
            f"{1000 * measured.waiting_per_step:,.2f} ms of it waiting for rows"
        )
        return measured

    def _enough(self, samples: list[StepSample]) -> bool:
        if self._steps is not None:
            return len(samples) >= self._steps
        return len(samples) >= LEAST_STEPS and math.fsum(s.seconds for s in samples) >= self._setup.seconds

    def _train(self, state: TrainingState, pairs: Pairs, watch: Stopwatch) -> None:
        clock = step_clock(state.learner.device, nanosecond_time=self._now)
        loop = state.loop(pairs=pairs, clock=clock, timetable=Timetable(), host=watch, observer=watch)
        if loop.run() is Stop.DIVERGED:
            raise ConfigError(
                f"training diverges within {loop.position.step:,} steps, and steps on nonfinite numbers tell nothing "
                "about time; lower optimizer.lr"
            )

    def _read_ahead(self, feed: Feed) -> None:
        """Brings the rows of the warm trial into the page cache by reading them, without computing."""
        start, steps = feed.state_dict(), self._steps or math.inf
        end = self._now() + self._setup.seconds * NANOSECONDS
        with self._console.progress("filling the page cache", self._steps, unit="steps") as line:
            for done, _ in enumerate(feed, 1):
                line.update(min(done, steps))
                if done >= steps + self._setup.warmup_steps or self._now() >= end:
                    break
        feed.load_state_dict(start)


@contextmanager
def _empty_folder(parent: Path) -> Iterator[str]:
    """One that is removed afterwards, also if SIGTERM ends the program, on the disk that `parent` is on."""
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
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does.

    Outside the main thread, and where a program hears its signals already: nothing changes.
    """
    if SignalDesk.current is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
