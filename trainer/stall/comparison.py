"""Where a step's time goes, from three trials that differ in nothing but how far their rows come."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ops.bound import DATA_BOUND_SHARE
from pipeline.shards import DOWNLOAD_THREADS

BLOCKS = 8
"""A standard error comes from the means of so many consecutive parts of a trial, as waits come in bursts."""
LEAST_BLOCKS = 4
READER_STAGES = ("source_read", "decompress", "decode", "shuffle")
"""Stages that share the reader's threads; `download` has its own, every other stage one, or the copy engine."""
PREPARATION_STALL, FETCH_STALL = "preparation stall", "fetch stall"
UNCLEAR = "unclear"
SPEEDUP = 2
"""How much faster the bottleneck stage is made, in thought."""


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One measured step."""

    seconds: float
    waiting: float
    """Seconds of it that passed in waiting for rows or for their copy to the device."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """What one stage of the pipeline took in a trial."""

    stage: str
    seconds_per_step: float
    """Thread seconds for the rows of a mean step."""
    busy_share: float
    """Share of the trial that its threads were busy with this stage, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How much faster a trial would be after a change: predicted from that trial alone, and measured if possible."""

    trial: str
    change: str
    predicted: float
    measured: float | None
    """Against another of the three trials."""


@dataclass(frozen=True, kw_only=True)
class TrialTimes:
    """One of the three trials, past its warm-up."""

    name: str
    steps: int
    rows: int
    seconds_per_step: float
    standard_error: float | None
    """Of `seconds_per_step`, from the means of `BLOCKS` parts of the trial; None for a trial too short to tell."""
    waiting_per_step: float
    """Seconds a step that the loop waited for rows."""
    stages: tuple[StageUse, ...] = ()

    @property
    def rows_per_second(self) -> float:
        return self.rows / (self.seconds_per_step * self.steps)

    @property
    def computing_per_step(self) -> float:
        """Seconds a step that the loop did not wait for rows."""
        return self.seconds_per_step - self.waiting_per_step

    @property
    def bottleneck(self) -> StageUse | None:
        """The longest stage of those threads that are busiest; None if no stage was seen."""
        return max(self.stages, key=lambda use: (self._busy(use), use.seconds_per_step), default=None)

    def _busy(self, use: StageUse) -> float:
        shared = use.stage in READER_STAGES
        return (
            sum(other.busy_share for other in self.stages if other.stage in READER_STAGES)
            if shared
            else (use.busy_share)
        )

    def wider(self, threads: int) -> Speedup | None:
        """What this trial would gain from a bottleneck stage `SPEEDUP` times as fast, with `threads` reader threads.

        The stage's threads then hand over their rows that much earlier; a trial gains no more than it waits.
        """
        use = self.bottleneck
        if use is None:
            return None
        saved = use.seconds_per_step * (1 - 1 / SPEEDUP) / _threads_of(use.stage, threads)
        return Speedup(
            trial=self.name,
            change=f"{use.stage} {SPEEDUP}× as fast",
            predicted=self.seconds_per_step / (self.seconds_per_step - min(saved, self.waiting_per_step)),
            measured=None,
        )


@dataclass(frozen=True, kw_only=True)
class TimeComponent:
    """A part of a step: computing, or one of the two stalls."""

    name: str
    seconds_per_step: float
    """A stall may come out below 0 by as much as the trials' own scatter."""
    standard_error: float | None
    waiting_per_step: float
    """How much of it the loop waited; the rest of a stall is computing that runs slower beside the loader."""
    share: float
    """Of the step of the trial furthest from computing alone: cold, or else warm."""


@dataclass(frozen=True, kw_only=True)
class StallReport:
    """The three trials and what their differences say."""

    trials: tuple[TrialTimes, ...]
    """compute, warm, and cold if the page cache could be dropped."""
    components: tuple[TimeComponent, ...]
    """compute, preparation stall = warm − compute, fetch stall = cold − warm; they sum to the whole step."""
    speedups: tuple[Speedup, ...]
    no_cold_trial: str | None
    """Why there is no cold trial."""

    @property
    def clear(self) -> bool:
        """Whether the trials differ by more than they scatter; if not, predictions made from them mean nothing."""
        return not self.verdict.startswith(UNCLEAR)

    @property
    def verdict(self) -> str:
        """One sentence: what bounds training, and what to change."""
        compute, *stalls = self.components
        worst = max(stalls, key=lambda stall: stall.seconds_per_step)
        if worst.standard_error is None:
            return (
                f"{UNCLEAR}: {self.trials[0].steps} steps are too few to tell; measure more with --steps or --seconds"
            )
        if worst.share < DATA_BOUND_SHARE:
            share = min(compute.share, 1.0)
            return f"compute-bound: {share:.0%} of a step is computing; only a faster step makes training faster"
        trial = self.trials[-1] if worst.name == FETCH_STALL else self.trials[1]
        slowed = worst.seconds_per_step - worst.waiting_per_step
        # A thread of the loader can hold the computing ones up for as long as it works, not for longer.
        unexplained = slowed > max(worst.seconds_per_step / 2, sum(use.seconds_per_step for use in trial.stages))
        if worst.seconds_per_step < 2 * worst.standard_error or unexplained:
            return (
                f"{UNCLEAR}: the trials scatter as much as they differ; measure more with --steps or --seconds, and "
                "with nothing else running"
            )
        if slowed > worst.seconds_per_step / 2:
            return f"data-bound: {worst.name} is {worst.share:.0%} of a step, most of it computing slowed by the loader"
        stage = f"; the bottleneck stage is {trial.bottleneck.stage}" if trial.bottleneck else ""
        return f"data-bound: {worst.name} is {worst.share:.0%} of a step{stage}"


def times(
    name: str,
    samples: Sequence[StepSample],
    stages: Mapping[str, tuple[float, int]] | None = None,
    *,
    reader_threads: int = 1,
) -> TrialTimes:
    """The trial's means over `samples`; `stages` are the pipeline's own (busy thread seconds, rows), by stage.

    A stage's share of the time follows from its seconds a row and the rows that the trial got through, so that rows
    read ahead before or beyond the samples do not count.
    """
    steps, rows = len(samples), sum(sample.rows for sample in samples)
    seconds = sum(sample.seconds for sample in samples)
    uses = []
    for stage, (busy, stage_rows) in (stages or {}).items():
        if not stage_rows:
            continue
        spent = busy / stage_rows * rows
        threads = _threads_of(stage, reader_threads)
        uses.append(StageUse(stage=stage, seconds_per_step=spent / steps, busy_share=spent / (seconds * threads)))
    return TrialTimes(
        name=name,
        steps=steps,
        rows=rows,
        seconds_per_step=seconds / steps,
        standard_error=standard_error([sample.seconds for sample in samples]),
        waiting_per_step=sum(sample.waiting for sample in samples) / steps,
        stages=tuple(uses),
    )


def _threads_of(stage: str, reader_threads: int) -> int:
    if stage in READER_STAGES:
        return reader_threads
    return DOWNLOAD_THREADS if stage == "download" else 1


def standard_error(seconds: Sequence[float]) -> float | None:
    """That of the mean, from the means of `BLOCKS` or a few more consecutive blocks; None for fewer than 4 values."""
    size = max(len(seconds) // BLOCKS, 1)
    means = [statistics.fmean(seconds[i : i + size]) for i in range(0, len(seconds) - size + 1, size)]
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) >= LEAST_BLOCKS else None


def compare(
    compute: TrialTimes,
    warm: TrialTimes,
    cold: TrialTimes | None,
    *,
    reader_threads: int,
    no_cold_trial: str | None = None,
) -> StallReport:
    """The differential accounting: what each trial takes beyond the one before it is that trial's stall.

    The prediction for a trial without waiting is what its own step clock leaves once the wait is taken out; the
    measurement is the compute trial. If the measured gain is larger, computing itself runs slower beside the loader.
    """
    trials = (compute, warm) if cold is None else (compute, warm, cold)
    whole = trials[-1].seconds_per_step
    components = [_component("compute", None, compute, whole)]
    for name, before, after in zip((PREPARATION_STALL, FETCH_STALL), trials, trials[1:], strict=False):
        components.append(_component(name, before, after, whole))
    speedups = []
    for trial in trials[1:]:
        no_wait = Speedup(
            trial=trial.name,
            change="no waiting for rows",
            predicted=trial.seconds_per_step / trial.computing_per_step,
            measured=trial.seconds_per_step / compute.seconds_per_step,
        )
        speedups += [no_wait, trial.wider(reader_threads)]
    return StallReport(
        trials=trials,
        components=tuple(components),
        speedups=tuple(speedup for speedup in speedups if speedup is not None),
        no_cold_trial=no_cold_trial,
    )


def _component(name: str, before: TrialTimes | None, after: TrialTimes, whole: float) -> TimeComponent:
    """What `after` takes beyond `before`, or all that it takes, as a share of `whole`."""
    if before is None:
        seconds, waiting, error = after.seconds_per_step, after.waiting_per_step, after.standard_error
    else:
        seconds = after.seconds_per_step - before.seconds_per_step
        waiting = after.waiting_per_step - before.waiting_per_step
        known = before.standard_error is not None and after.standard_error is not None
        error = math.hypot(before.standard_error or 0.0, after.standard_error or 0.0) if known else None
    return TimeComponent(
        name=name, seconds_per_step=seconds, standard_error=error, waiting_per_step=waiting, share=seconds / whole
    )


def whole_windows(rows: Sequence[int], window_rows: float) -> int:
    """How many leading steps, of so many rows each, come nearest to whole windows of `window_rows` rows.

    A reader that shuffles windows works in their rhythm: only over whole windows does it read as many rows as are
    trained on. All of the steps if they do not fill one window.
    """
    total = sum(rows)
    target = total // window_rows * window_rows
    if not target:
        return len(rows)
    done = 0
    for steps, step_rows in enumerate(rows, 1):
        done += step_rows
        if done >= target:
            return steps
    return len(rows)
