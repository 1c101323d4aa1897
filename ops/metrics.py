"""What a run exports to Prometheus: the series of `ops.series`, kept up to date."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ops.ranks import RankMetrics
from ops.series import CAUSES, DEFINITION, EVALUATED, EXIT_REASONS, OUTCOMES, PREFIX, RECORD_FILES, RETRY_CAUSES, Series
from ops.step_clock import PHASES

# A creation time beside every counter would double the page and tell what start_timestamp_seconds tells once.
disable_created_metrics()

PLAIN_GAUGES = (
    *("rate_factor", "validation_worsening", "validation_best_step", "last_checkpoint_step"),
    *("generation", "generations_waiting", "waiting_for_generation", "log_rows", "log_rows_waiting"),
)
"""What `Metrics.set` sets."""


class Metrics:
    """The series of one run, each instance with a registry of its own unless one is given.

    Takes plain numbers only. Safe to call from any thread.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        unix_time: Callable[[], float] = time.time,
        open_phases: Callable[[], Mapping[str, float]] = dict,
        device_memory: Callable[[], Mapping[str, float]] = dict,
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`open_phases`: seconds by phase that have passed since what `step` and `phase` were last told of.

        `device_memory`: bytes by state, as of `device_memory_bytes`. `seconds_left`: of the run; None while that is not
        known. All three are asked at every scrape, in its thread.
        """
        self.registry = registry or CollectorRegistry(auto_describe=True)
        self._unix_time = unix_time
        self._stage_totals: dict[str, tuple[float, float]] = {}
        self._step_duration = self._histogram("step_duration_seconds")
        self._phases = _PhaseSeconds(open_phases)
        self.registry.register(self._phases)
        self._rows = self._counter("rows_total")
        self._steps = self._counter("steps_total")
        self._queue = self._gauge("queue_batches")
        self._stage_seconds = self._counter("stage_seconds_total")
        self._stage_rows = self._counter("stage_rows_total")
        self._loss = self._gauge("loss")
        self._learning_rate = self._gauge("learning_rate")
        self._scheduled_rate = self._gauge("learning_rate_scheduled")
        self._proposed_rate = self._gauge("learning_rate_proposed")
        self._proposed_rate_error = self._gauge("learning_rate_proposed_standard_error")
        self._alpha_relative = self._histogram("alpha_relative")
        self._estimates = {what: self._counter(f"{what}_estimates_total") for what in ("alpha", "horizon")}
        self._alpha_age = self._gauge("alpha_age_steps")
        self._alpha_pooled = [self._gauge(f"alpha_pooled_relative{name}") for name in ("", "_standard_error")]
        self._horizon = [
            self._gauge(f"horizon_{name}") for name in ("alpha_relative", "alpha_relative_standard_error", "steps")
        ]
        self._evaluation = {
            name: self._gauge(f"evaluation_{name}") for name in ("loss", "auc", "normalized_entropy", "calibration")
        }
        self._waited = self._counter("generation_wait_seconds_total")
        self._nonfinite_steps, self._rollbacks = (
            self._counter(name) for name in ("nonfinite_steps_total", "rollbacks_total")
        )
        self._plain = {name: self._gauge(name) for name in PLAIN_GAUGES}
        self._start = self._gauge("start_timestamp_seconds")
        self._last_progress = self._gauge("last_progress_timestamp_seconds")
        self._last_checkpoint = self._gauge("last_checkpoint_timestamp_seconds")
        self._checkpoint_failures = self._counter("checkpoint_failures_total")
        self._checkpoint_seconds = self._histogram("checkpoint_seconds")
        self._checkpoint_bytes = self._gauge("checkpoint_bytes")
        self._disk_free = self._gauge("disk_free_bytes")
        self._rejected_rows = self._counter("rejected_rows_total")
        self._read_retries, self._uncached_reads = map(self._counter, ("read_retries_total", "uncached_reads_total"))
        self._hangs, self._hung = self._counter("watchdog_hangs_total"), self._gauge("hung")
        self._records_waiting = self._gauge("records_waiting")
        self._records_lost = self._counter("records_lost_total")
        self._console_lost = self._counter("console_lines_lost_total")
        self.registry.register(_DeviceMemory(device_memory))
        self._run_step = self._gauge("run_step")
        self._run_total_steps = self._gauge("run_total_steps")
        self._gauge("run_seconds_left").set_function(lambda: _or_nan(seconds_left()))
        self._run_starts = self._counter("run_starts_total")
        self._exit_code, self._exit_reason = self._gauge("exit_code"), self._gauge("exit_reason")
        self.ranks = RankMetrics(self._gauge, self._counter)
        self._start.set(unix_time())
        self._started = False
        self._build_info()
        ProcessCollector(registry=self.registry)

    def run(self, name: str, *, starts: int) -> None:
        """Say which run this is, and how many processes have worked on it, this one included; called once."""
        info = Info("run", DEFINITION["run_info"].help, namespace=PREFIX, registry=self.registry)
        info.info({"run": name})
        self._run_starts.inc(starts)

    def progress(self, step: int, *, total_steps: int | None) -> None:
        """Set how far the run has come, in steps of all its processes, and its last step; None if that is not known."""
        self._run_step.set(step)
        self._run_total_steps.set(_or_nan(total_steps))

    def exit(self, code: int, reason: str) -> None:
        """Set how the run ended; `reason` is one of `EXIT_REASONS`."""
        assert reason in EXIT_REASONS, f"unknown reason {reason!r}"
        self._exit_code.set(code)
        for name in EXIT_REASONS:
            self._exit_reason.labels(name).set(name == reason)

    def step(  # noqa: PLR0917 (the six numbers of a step, in the order its record has them)
        self,
        seconds: float,
        phases: Mapping[str, float],
        rows: int,
        loss: float | None,
        learning_rate: float,
        queue_batches: int,
    ) -> None:
        """Count one finished training step; `phases` (seconds) sum to `seconds`. A loss not known yet is None."""
        self.phase(phases)
        self._step_duration.observe(seconds)
        self._rows.inc(rows)
        self._steps.inc()
        self._learning_rate.set(learning_rate)
        self._queue.set(queue_batches)
        if loss is not None:
            self._loss.set(loss)

    def phase(self, phases: Mapping[str, float]) -> None:
        """Count time spent outside training steps (evaluation, checkpoint), in seconds by phase."""
        now = self._unix_time()
        if not self._started:
            self._started = True
            self._start.set(now - sum(phases.values()))
        self._phases.add(phases)
        self._last_progress.set(now)

    def stages(self, totals: Mapping[str, tuple[float, float]]) -> None:
        """Bring the pipeline's stages up to `totals`: (seconds, rows) since its feed was opened, by stage.

        Totals that fall belong to a feed opened anew; what they show is added to what was counted before.
        """
        for name, (seconds, rows) in totals.items():
            seconds_before, rows_before = self._stage_totals.get(name, (0.0, 0.0))
            if seconds < seconds_before or rows < rows_before:
                seconds_before, rows_before = 0.0, 0.0
            self._stage_seconds.labels(name).inc(seconds - seconds_before)
            self._stage_rows.labels(name).inc(rows - rows_before)
            self._stage_totals[name] = (seconds, rows)

    def estimate(self, outcome: str, relative: float | None, age_steps: int | None) -> None:
        """Count one α* estimate; `relative` and `age_steps` are None if the outcome leaves them undefined."""
        assert outcome in OUTCOMES, f"unknown outcome {outcome!r}"
        self._estimates["alpha"].labels(outcome).inc()
        if relative is not None and math.isfinite(relative):
            self._alpha_relative.observe(relative)
        if age_steps is not None:
            self._alpha_age.set(age_steps)

    def horizon(self, outcome: str, steps: int, relative: float | None, standard_error: float | None) -> None:
        """Count one measurement of so many steps as a whole, and set what came of it where it has a number."""
        assert outcome in OUTCOMES, f"unknown outcome {outcome!r}"
        self._estimates["horizon"].labels(outcome).inc()
        if relative is not None and math.isfinite(relative):
            for gauge, value in zip(self._horizon, (relative, _or_nan(standard_error), steps), strict=True):
                gauge.set(value)

    def no_horizon(self) -> None:
        """What was measured of many steps counts no longer."""
        for gauge in self._horizon:
            gauge.set(math.nan)

    def pooled_alpha(self, factor: float | None, standard_error: float | None) -> None:
        """Set α* as pooled over the latest estimates, and its standard error; None while they say nothing."""
        for gauge, value in zip(self._alpha_pooled, (factor, standard_error), strict=True):
            gauge.set(_or_nan(value))

    def scheduled_rate(self, rate: float) -> None:
        """Set the rate that the schedule alone gave the latest step."""
        self._scheduled_rate.set(rate)

    def proposed_rate(self, rate: float | None, standard_error: float | None) -> None:
        """Set the rate that α* proposes, pooled over the latest estimates; None while they say nothing."""
        self._proposed_rate.set(_or_nan(rate))
        self._proposed_rate_error.set(_or_nan(standard_error))

    def evaluation(
        self,
        split: str,
        loss: float,
        auc: float | None,
        normalized_entropy: float | None,
        calibration: float | None = None,
    ) -> None:
        """Set the latest evaluation of a split, of `EVALUATED`; what one label class alone leaves undefined is None."""
        assert split in EVALUATED, f"unknown split {split!r}"
        values = {"loss": loss, "auc": auc, "normalized_entropy": normalized_entropy, "calibration": calibration}
        for name, value in values.items():
            self._evaluation[name].labels(split).set(_or_nan(value))

    def generations(self, current: int, *, waiting: int, rows: int, waiting_rows: int) -> None:
        """Set which generation of a log is trained on, how many are there after it, and the same in training rows:
        those of the log, and those not trained on yet.
        """
        self.set("generation", current)
        self.set("generations_waiting", waiting)
        self.set("log_rows", rows)
        self.set("log_rows_waiting", waiting_rows)

    def waiting_for_generation(self, waits: bool) -> None:
        """Set whether the run waits for a generation that isn't there."""
        self.set("waiting_for_generation", waits)

    def waited_for_generation(self, seconds: float) -> None:
        """Count `seconds` more of such a wait; also while it goes on."""
        self._waited.inc(seconds)

    def nonfinite_step(self, cause: str) -> None:
        """Count a step that was withheld."""
        assert cause in CAUSES, f"unknown cause {cause!r}"
        self._nonfinite_steps.labels(cause).inc()

    def rolled_back(self) -> None:
        """Count a rollback."""
        self._rollbacks.inc()

    def set(self, name: str, value: float) -> None:
        """Set one of the gauges that say no more than a number: `rate_factor` and others."""
        self._plain[name].set(value)

    def checkpoint(
        self, ok: bool, *, unix_time: float | None = None, seconds: float | None = None, size_bytes: int | None = None
    ) -> None:
        """Count a checkpoint that was written whole, at `unix_time` or just now, or one that failed."""
        if not ok:
            self._checkpoint_failures.inc()
            return
        self._last_checkpoint.set(self._unix_time() if unix_time is None else unix_time)
        if seconds is not None:
            self._checkpoint_seconds.observe(seconds)
        if size_bytes is not None:
            self._checkpoint_bytes.set(size_bytes)

    def expect_checkpoint(self, size_bytes: int) -> None:
        """Set the size that the first checkpoint will have."""
        self._checkpoint_bytes.set(size_bytes)

    def disk_free(self, free_bytes: float) -> None:
        """Set the free space on the disk of the run directory."""
        self._disk_free.set(free_bytes)

    def read_retry(self, cause: str) -> None:
        """Count a read that is tried again; `cause` is one of `RETRY_CAUSES`."""
        assert cause in RETRY_CAUSES, f"unknown cause {cause!r}"
        self._read_retries.labels(cause).inc()

    def uncached_read(self) -> None:
        """Count a row group that was read past the cache."""
        self._uncached_reads.inc()

    def hang(self, phase: str) -> None:
        """Count that the run hangs in `phase`, and show it until `recovery`."""
        assert phase in PHASES, f"unknown phase {phase!r}"
        self._hangs.labels(phase).inc()
        self._hung.set(1)

    def recovery(self) -> None:
        """Show that the run doesn't hang any more."""
        self._hung.set(0)

    def exposition(self) -> str:
        """Everything as Prometheus' text format, as a scrape would get it now."""
        return generate_latest(self.registry).decode()

    def rejected_rows(self, rows: int) -> None:
        """Count `rows` more rows that the stream left out."""
        self._rejected_rows.inc(rows)

    def records(self, file: str, *, waiting: int, lost: int) -> None:
        """Set how many records of `file` wait to be written, and count `lost` more that never will be."""
        assert file in RECORD_FILES, f"unknown record file {file!r}"
        self._records_waiting.labels(file).set(waiting)
        self._records_lost.labels(file).inc(lost)

    def console_lines_lost(self, lines: int) -> None:
        """Count `lines` more that the terminal or log did not take."""
        self._console_lost.inc(lines)

    def _counter(self, name: str) -> Counter:
        series = DEFINITION[name]
        counter = Counter(name, series.help, _labels(series), namespace=PREFIX, registry=self.registry)
        for value in series.values:
            counter.labels(value)
        return counter

    def _gauge(self, name: str) -> Gauge:
        series = DEFINITION[name]
        gauge = Gauge(name, series.help, _labels(series), namespace=PREFIX, registry=self.registry)
        for child in [gauge.labels(value) for value in series.values] or [gauge]:
            child.set(series.initial)
        return gauge

    def _histogram(self, name: str) -> Histogram:
        series = DEFINITION[name]
        return Histogram(name, series.help, namespace=PREFIX, registry=self.registry, buckets=series.buckets)

    def _build_info(self) -> None:
        info = Info("build", DEFINITION["build_info"].help, namespace=PREFIX, registry=self.registry)
        info.info({"version": _version("alphastream"), "python": platform.python_version(), "torch": _version("torch")})


class _PhaseSeconds(Collector):
    """`step_phase_seconds_total`: what has been told, and what of the time since is known, up to the moment of asking.

    It never falls: what is open can turn out to be something else by a little, and is told a moment after it ended.
    """

    def __init__(self, open_phases: Callable[[], Mapping[str, float]]) -> None:
        self._open, self._lock = open_phases, threading.Lock()
        self._told, self._shown = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)

    def add(self, phases: Mapping[str, float]) -> None:
        with self._lock:
            for name, seconds in phases.items():
                assert name in PHASES, f"unknown phase {name!r}"
                self._told[name] += seconds

    def describe(self) -> list[CounterMetricFamily]:
        series = DEFINITION["step_phase_seconds_total"]
        return [CounterMetricFamily(f"{PREFIX}_{series.name}", series.help, labels=_labels(series))]

    def collect(self) -> list[CounterMetricFamily]:
        with self._lock:
            told, now_open = dict(self._told), self._open()
            for name, seconds in told.items():
                self._shown[name] = max(self._shown[name], seconds + now_open.get(name, 0.0))
            families = self.describe()
            for name, seconds in self._shown.items():
                families[0].add_metric([name], seconds)
        return families


class _DeviceMemory(Collector):
    """`device_memory_bytes`, asked for at every scrape."""

    def __init__(self, device_memory: Callable[[], Mapping[str, float]]) -> None:
        self._memory = device_memory

    def describe(self) -> list[GaugeMetricFamily]:
        series = DEFINITION["device_memory_bytes"]
        return [GaugeMetricFamily(f"{PREFIX}_{series.name}", series.help, labels=_labels(series))]

    def collect(self) -> list[GaugeMetricFamily]:
        families = self.describe()
        for state, size in self._memory().items():
            families[0].add_metric([state], size)
        return families


def _or_nan(value: float | None) -> float:
    """What a gauge shows; NaN for what is not known."""
    return math.nan if value is None else value


def _labels(series: Series) -> tuple[str, ...]:
    return (series.label,) if series.label else ()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
