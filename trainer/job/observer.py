"""Where everything a run says goes: its records, the metrics, the live page and the terminal."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from threading import Lock
from typing import Any

from ops.bound import PAUSES
from ops.live import LEAST_ESTIMATES, AlphaFactor, LiveStatus
from ops.metrics import Metrics
from ops.receivers import ServiceManager, TensorBoard
from ops.step_clock import StepClock, StepTiming
from pipeline.device import Feed
from stepsize import per_rate, pool
from stepsize.estimate import Estimate
from trainer.console import Console, ProgressLine
from trainer.job.lineage.withheld_steps import WithheldSteps
from trainer.job.recording.log_progress import LogProgress
from trainer.job.recording.watch import RecordWatch
from trainer.job.run_directory import RunDirectory
from trainer.learner import Evaluation, ProgressiveValidation
from trainer.process import Request

FLUSH_STEPS, FLUSH_SECONDS = 50, 5.0
"""Records reach the operating system, and so a report of a run in progress, after at most so many steps, and after at
most so many seconds of training where a step is shorter."""
POOLED_ESTIMATES = 200
"""α* is shown as pooled over so many of the latest estimates."""
SHOWN_STEPS = 50
"""The terminal's loss is the mean of so many of the latest steps, so that one that leapt is soon forgotten."""
SMOOTHING = 0.98
"""Share of the old value in the terminal's time of a step."""


@dataclass(frozen=True, kw_only=True)
class Outlets:
    """Where a run's news goes: its directory, the metrics, the live page, the terminal, a service manager and
    TensorBoard; and the clock it goes by.
    """

    directory: RunDirectory
    metrics: Metrics
    live: LiveStatus
    clock: StepClock
    console: Console
    manager: ServiceManager = field(default_factory=ServiceManager)
    tensorboard: TensorBoard = field(default_factory=TensorBoard)
    estimates: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=POOLED_ESTIMATES))
    """(slope, curvature) of the latest estimates of α* with a number, those of earlier processes included."""
    first_retry: Lock = field(default_factory=Lock)
    """Taken by the first read of this process that is tried again, and never given back."""
    first_uncached: Lock = field(default_factory=Lock)
    """The same of the first read past the cache."""

    def retry(self, cause: str, text: str) -> None:
        """Counts a read that is tried again, or made past the cache; the first of a process is said. In any thread."""
        uncached = cause == "uncached"
        if uncached:
            self.metrics.uncached_read()
        else:
            self.metrics.read_retry(cause)
        if (self.first_uncached if uncached else self.first_retry).acquire(blocking=False):
            name = "uncached_reads_total" if uncached else "read_retries_total"
            self.warn(f"{text}; further ones are counted in {name}", step=self.live.steps_done)

    @cached_property
    def watch(self) -> RecordWatch:
        """Of the records in the directory."""
        return RecordWatch(
            self.directory, self.metrics, self.console, warn=lambda message, step: self.warn(message, step=step)
        )

    def flush(self, *, step: int) -> None:
        """Hands the records of the first `step` steps to the operating system, and says what keeps it from that."""
        self.directory.flush()
        self.watch.look(step=step)

    def heard(self, signal_name: str, request: Request) -> None:
        """Says what a signal asked for; a service manager is told of a stop."""
        if request is Request.SAVE:
            self.console.say(f"{signal_name}: saving, then going on")
            return
        self.console.say(f"{signal_name}: stopping after this step, then saving; again to stop at once")
        self.manager.stopping(signal_name)

    def warn(self, message: str, *, step: int) -> None:
        """A sentence that people should see, in the event log and on the terminal."""
        self.directory.event("warning", step=step, message=message)
        self.console.warn(message)


class RunObserver:
    """Writes RUN/*.jsonl and keeps metrics, live page and terminal up to date. It never decides anything."""

    def __init__(
        self,
        outlets: Outlets,
        feed: Feed,
        line: ProgressLine,
        *,
        progressive: ProgressiveValidation | None = None,
    ) -> None:
        self._progressive = progressive
        self._outlets, self._feed, self._line = outlets, feed, line
        self._directory, self._metrics, self._live = outlets.directory, outlets.metrics, outlets.live
        self._losses: deque[float] = deque(maxlen=SHOWN_STEPS)
        self._recent_seconds, self._shown = math.nan, 0
        self._estimates = outlets.estimates
        self._rates: deque[tuple[float, float]] = deque(maxlen=POOLED_ESTIMATES)
        self._factor: AlphaFactor | None = None
        self._skipped_rows, self._warned = feed.skipped_rows, False
        self._flushed_seconds = -math.inf
        self._withheld = WithheldSteps(outlets, feed)
        self._log = None if feed.log is None else LogProgress(feed.log)

    def on_step(self, record: Mapping[str, Any], timing: StepTiming, training_seconds: float) -> None:
        """One finished step: the fields of steps.jsonl, its timing, and the run's training time after it."""
        self._directory.records["steps"].append(record)
        step, loss, rate, rows = record["step"], record["loss"], record["learning_rate"], record["rows"]
        if step % FLUSH_STEPS == 0 or training_seconds >= self._flushed_seconds + FLUSH_SECONDS:
            self._outlets.flush(step=step)
            self._flushed_seconds = training_seconds
        self._directory.thin(done=step + 1)
        self._metrics.step(timing.seconds, timing.phases, rows, loss, rate, self._feed.queued_batches())
        self._metrics.scheduled_rate(record.get("scheduled_rate", rate))
        self._metrics.stages(self._feed.stage_totals())
        if self._log is not None:
            self._log.tell(self._metrics, generation=record["epoch"], rows=record["start"] + rows)
        self._count_skipped(step)
        self._withheld.on_step(record)
        self._live.step(
            step,
            epoch=record["epoch"],
            rows=rows,
            loss=loss,
            learning_rate=rate,
            seconds=timing.seconds,
            training_seconds=training_seconds,
        )
        self._metrics.progress(step + 1, total_steps=self._live.total_steps)
        self._outlets.manager.step(step + 1, loss=loss)
        self._outlets.tensorboard.step(
            step + 1, loss=loss, learning_rate=rate, seconds=timing.seconds, phases=timing.phases
        )
        self._show(step, loss, rate, rows, timing)
        window = None if self._progressive is None else self._progressive.take(step)
        if window is not None:
            self.on_evaluation(window, step=step + 1, seconds=0.0, training_seconds=training_seconds)

    def _count_skipped(self, step: int) -> None:
        skipped = self._feed.skipped_rows - self._skipped_rows
        if skipped and not self._warned:
            self._warned = True
            self._outlets.warn(
                "damaged rows are left out, and counted; run `alphastream verify` on the data", step=step
            )
        self._skipped_rows += skipped
        self._metrics.rejected_rows(skipped)

    def _show(self, step: int, loss: float, rate: float, rows: int, timing: StepTiming) -> None:
        if not math.isfinite(loss + sum(self._losses)):
            self._losses.clear()
        self._losses.append(loss)
        self._shown += 1
        # The first step waits for the pipeline to fill and for compilation: it says nothing of the speed.
        self._recent_seconds = _smooth(math.nan if self._shown <= 2 else self._recent_seconds, timing.seconds)
        self._line.update(
            step + 1,
            lambda: (
                f"loss {_loss(fmean(self._losses))}  lr {rate:.2e}"
                f"{_horizon(self._live.latest_horizon) or _alpha(self._factor)}  "
                f"{rows / self._recent_seconds:,.0f} rows/s  data wait {self._outlets.clock.bound().data_share:.0%}"
            ),
        )

    def on_rollback(self) -> None:
        """The run has gone back: what is shown as an average of the latest steps is one of those that count."""
        self._losses.clear()
        self._factor = pooled_factor(self._estimates) if self._estimates else None
        self._rates.clear()
        self._metrics.no_horizon()
        shown = self._factor or pooled_factor(())
        self._metrics.pooled_alpha(shown.factor, shown.standard_error)
        self._metrics.proposed_rate(None, None)
        if self._live.latest_horizon is not None:
            self._forget_single_steps()

    def on_pause(self, timing: StepTiming) -> None:
        """Time between steps: an evaluation or a checkpoint, which the event log keeps for the report; or the start."""
        self._metrics.phase(timing.phases)
        spent = {name: seconds for name, seconds in timing.phases.items() if seconds}
        if not spent.keys().isdisjoint(PAUSES):
            self._directory.event("pause", step=self._live.steps_done, phases=spent)

    def on_estimate(self, estimate: Estimate) -> None:
        """One α* estimate, whatever its outcome."""
        record = {key: value for key, value in asdict(estimate).items() if value is not None or key not in OPTIONAL}
        if estimate.horizon > 1:
            self._on_horizon(estimate, record)
            return
        self._directory.records["alpha"].append(record)
        self._metrics.estimate(str(estimate.outcome), estimate.relative, estimate.age)
        pair = per_rate(estimate)
        if pair is not None and estimate.slope is not None and estimate.curvature is not None:
            self._estimates.append((estimate.slope, estimate.curvature))
            self._factor = pooled_factor(self._estimates)
            self._metrics.pooled_alpha(self._factor.factor, self._factor.standard_error)
            self._rates.append(pair)
            proposed = pool(list(self._rates)) if len(self._rates) >= LEAST_ESTIMATES else None
            proposed = proposed if proposed and proposed.borne else None
            self._metrics.proposed_rate(proposed and proposed.rate, proposed and proposed.standard_error)
        pooled = None if self._factor is None else self._factor.factor
        self._outlets.tensorboard.estimate(
            estimate.step, relative=estimate.relative, absolute=estimate.absolute, pooled=pooled
        )
        self._live.estimate(
            estimate.step,
            outcome=str(estimate.outcome),
            relative=estimate.relative,
            absolute=estimate.absolute,
            per_rate=pair,
            factor=self._factor,
        )

    def _on_horizon(self, estimate: Estimate, record: dict[str, Any]) -> None:
        """α* of many steps as a whole, recorded and shown apart: it does not say how long one should have been."""
        self._directory.records["horizon"].append(record)
        relative, error = estimate.relative, estimate.standard_error
        self._metrics.horizon(str(estimate.outcome), estimate.horizon, relative, error)
        if relative is not None:
            self._forget_single_steps()
            self._live.horizon(estimate.horizon, relative, error)

    def _forget_single_steps(self) -> None:
        """Many steps lead the rate from here on: what single ones said before is no longer true of it."""
        self._estimates.clear()
        self._rates.clear()
        self._factor = None
        self._metrics.pooled_alpha(None, None)
        self._metrics.proposed_rate(None, None)

    def on_message(self, message: str, *, step: int) -> None:
        """A sentence for people, such as what a policy just changed."""
        self._directory.event("policy", step=step, message=message)
        self._live.message(step, message)
        self._outlets.console.say(message)

    def on_evaluation(self, evaluation: Evaluation, *, step: int, seconds: float, training_seconds: float) -> None:
        """One split's evaluation after `step` steps."""
        values = evaluation.values()
        self._directory.records["evals"].append(
            {"step": step, **values, "seconds": seconds, "training_seconds": training_seconds}
        )
        self._outlets.flush(step=step)
        self._metrics.evaluation(
            evaluation.split, evaluation.loss, evaluation.auc, evaluation.normalized_entropy, evaluation.calibration
        )
        self._live.evaluation(step, evaluation.split, loss=evaluation.loss, auc=evaluation.auc)
        self._outlets.tensorboard.evaluation(
            step,
            evaluation.split,
            loss=evaluation.loss,
            auc=evaluation.auc,
            normalized_entropy=evaluation.normalized_entropy,
        )
        weighted = "" if evaluation.weight is None else ", weighted"
        auc = "" if evaluation.auc is None else f"  AUC {evaluation.auc:.4f}"
        self._outlets.console.say(
            f"step {step}: {evaluation.split} loss {evaluation.loss:.5f}{auc}  ({evaluation.rows:,} rows{weighted})"
        )


OPTIONAL = ("biased", "hybrid", "diagnostics", "groups")
"""Fields of alpha.jsonl that are left out unless they were asked for."""


def pooled_factor(estimates: Collection[tuple[float, float]]) -> AlphaFactor:
    """The one factor by which the steps of (dᵀg, dᵀGd) should all have been longer, −Σ dᵀg / Σ dᵀGd.

    It minimizes the sum of their quadratic models, so a step counts by what it did: the tiny ones of a warm-up or of a
    search say little of the others. None where one or two have most of the curvature, as at a divergence.
    """
    pooled = pool(list(estimates))
    if pooled is None or not pooled.borne or len(estimates) < LEAST_ESTIMATES:
        return AlphaFactor(estimates=len(estimates), factor=None, standard_error=None)
    return AlphaFactor(estimates=len(estimates), factor=pooled.rate, standard_error=pooled.standard_error)


def _alpha(factor: AlphaFactor | None) -> str:
    """The factor with its margin, or why there is none yet; nothing if nothing is measured."""
    if factor is None:
        return ""
    if factor.factor is None:
        few = factor.estimates < LEAST_ESTIMATES
        return f"  α* {factor.estimates} of {LEAST_ESTIMATES} estimates" if few else "  α* undefined"
    margin = "" if factor.margin is None else f" ± {factor.margin:.2g}"
    return f"  α* {factor.factor:.2g}{margin} × step"


def _horizon(latest: Mapping[str, Any] | None) -> str:
    """α* of many steps as a whole; nothing before there is one."""
    if latest is None or latest["relative"] is None:
        return ""
    margin = "" if latest["margin"] is None else f" ± {latest['margin']:.2g}"
    return f"  α* {latest['relative']:.2g}{margin} × the last {latest['steps']} steps"


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def _smooth(old: float, new: float) -> float:
    return new if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * new
