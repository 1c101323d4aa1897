"""Every series of the contract is there from the start, under its exact name, and counts what it says."""

from __future__ import annotations

import math
import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from ops.metrics import Metrics
from ops.series import EXIT_REASONS, OUTCOMES, PREFIX, SERIES
from ops.step_clock import PHASES
from pipeline import schema
from stepsize.estimate import Outcome
from trainer.learner.scoring.progressive import PROGRESSIVE

CONTRACT = [
    "step_duration_seconds",
    "step_phase_seconds_total",
    "rows_total",
    "steps_total",
    "queue_batches",
    "stage_seconds_total",
    "stage_rows_total",
    "loss",
    "learning_rate",
    "alpha_relative",
    "alpha_estimates_total",
    "alpha_age_steps",
    "last_progress_timestamp_seconds",
    "last_checkpoint_timestamp_seconds",
    "checkpoint_failures_total",
    "rejected_rows_total",
    "run_info",
    "run_step",
    "run_total_steps",
    "exit_code",
    "build_info",
]


class FakeTime:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def metrics(time: FakeTime) -> Metrics:
    return Metrics(unix_time=time)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    sample = metrics.registry.get_sample_value(f"{PREFIX}_{name}", labels)
    assert sample is not None, f"{name}{labels} is not exported"
    return sample


def take_step(metrics: Metrics, seconds: float = 0.5, **changes: object) -> None:
    step = {"rows": 256, "loss": 0.5, "learning_rate": 1e-3, "queue_batches": 3} | changes
    metrics.step(seconds, {"data_wait": 0.25 * seconds, "forward": 0.75 * seconds}, **step)  # pyright: ignore[reportArgumentType]


def test_a_scrape_shows_the_open_phase_and_never_less_than_the_one_before(time: FakeTime) -> None:
    open_phases = {"data_wait": 3.0}
    metrics = Metrics(unix_time=time, open_phases=lambda: open_phases)
    assert value(metrics, "step_phase_seconds_total", phase="data_wait") == 3.0
    open_phases["data_wait"] = 5.0
    assert value(metrics, "step_phase_seconds_total", phase="data_wait") == 5.0
    open_phases["data_wait"] = 0.0  # the interval has ended, and is told of in a moment
    assert value(metrics, "step_phase_seconds_total", phase="data_wait") == 5.0
    metrics.phase({"data_wait": 5.5})
    assert value(metrics, "step_phase_seconds_total", phase="data_wait") == 5.5
    assert f'{PREFIX}_step_phase_seconds_total{{phase="data_wait"}} 5.5' in metrics.exposition()


def test_the_contract_is_defined_and_exported() -> None:
    metrics = Metrics()
    metrics.run("runs/one", starts=1)
    metrics.stages({"decode": (1.0, 10.0)})
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition())}
    defined = {series.name: series for series in SERIES}
    for name in CONTRACT:
        assert name in defined
        # The parser takes `_total` off a counter's name.
        family = families[f"{PREFIX}_{name.removesuffix('_total')}"]
        assert family.samples, f"{name} has no sample before the first step"
        assert family.documentation == defined[name].help
    ours = {name for name in families if name.startswith(PREFIX)}
    assert ours == {f"{PREFIX}_{name.removesuffix('_total')}" for name in defined}


def test_labels_are_the_enumerations_of_their_owners() -> None:
    assert set(OUTCOMES) == {str(outcome) for outcome in Outcome}
    splits = next(series.values for series in SERIES if series.name == "evaluation_loss")
    assert splits == (*schema.SPLITS, PROGRESSIVE)


def test_every_bounded_label_is_exported_before_it_happens(metrics: Metrics) -> None:
    assert {value(metrics, "step_phase_seconds_total", phase=phase) for phase in PHASES} == {0.0}
    assert {value(metrics, "alpha_estimates_total", outcome=outcome) for outcome in OUTCOMES} == {0.0}
    assert math.isnan(value(metrics, "evaluation_loss", split="test"))
    assert math.isnan(value(metrics, "loss"))


def test_exposition_is_what_a_scrape_gets(metrics: Metrics) -> None:
    take_step(metrics)
    assert "\nalphastream_steps_total 1.0\n" in metrics.exposition()


def test_a_registry_is_fresh_unless_given() -> None:
    first, second = Metrics(), Metrics()
    take_step(first)
    assert value(second, "steps_total") == 0
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


def test_a_step_is_counted(metrics: Metrics) -> None:
    take_step(metrics, 0.5)
    take_step(metrics, 1.5, rows=100, loss=0.25, learning_rate=2e-3, queue_batches=0)
    assert value(metrics, "steps_total") == 2
    assert value(metrics, "rows_total") == 356
    assert value(metrics, "step_duration_seconds_sum") == 2.0
    assert value(metrics, "step_duration_seconds_count") == 2
    assert value(metrics, "step_phase_seconds_total", phase="data_wait") == 0.5
    assert value(metrics, "loss") == 0.25
    assert value(metrics, "learning_rate") == 2e-3
    assert value(metrics, "queue_batches") == 0


def test_a_loss_not_known_yet_leaves_the_last_one(metrics: Metrics) -> None:
    take_step(metrics, loss=0.75)
    take_step(metrics, loss=None)
    assert value(metrics, "loss") == 0.75


def test_phases_sum_to_the_time_between_the_two_timestamps(metrics: Metrics, time: FakeTime) -> None:
    time.now += 60  # loading, before the clock of the run began
    for seconds in (0.5, 1.25):
        time.now += seconds
        take_step(metrics, seconds)
    time.now += 8
    metrics.phase({"evaluation": 7.0, "other": 1.0})
    spent = sum(value(metrics, "step_phase_seconds_total", phase=phase) for phase in PHASES)
    assert (
        spent == value(metrics, "last_progress_timestamp_seconds") - value(metrics, "start_timestamp_seconds") == 9.75
    )
    assert value(metrics, "steps_total") == 2


def test_stage_totals_are_taken_over_and_survive_a_new_feed(metrics: Metrics) -> None:
    metrics.stages({"decode": (2.0, 100.0)})
    metrics.stages({"decode": (3.0, 150.0), "read": (1.0, 50.0)})
    assert value(metrics, "stage_seconds_total", stage="decode") == 3.0
    metrics.stages({"decode": (0.5, 20.0)})
    assert value(metrics, "stage_seconds_total", stage="decode") == 3.5
    assert value(metrics, "stage_rows_total", stage="decode") == 170
    assert value(metrics, "stage_rows_total", stage="read") == 50


def test_alpha_histogram_starts_below_zero_and_separates_the_sign(metrics: Metrics) -> None:
    buckets = next(series.buckets for series in SERIES if series.name == "alpha_relative")
    assert buckets[0] < 0
    assert 0.0 in buckets
    assert 1.0 in buckets
    for relative in (-5.0, -0.01, 0.5, 2.0, math.nan, None):
        metrics.estimate("ok" if relative and relative > 0 else "ascent", relative, 1)
    assert value(metrics, "alpha_relative_bucket", le="0.0") == 2
    assert value(metrics, "alpha_relative_bucket", le="1.0") == 3
    assert value(metrics, "alpha_relative_count") == 4
    assert value(metrics, "alpha_estimates_total", outcome="ok") == 2


def test_an_estimate_without_numbers_is_counted_only(metrics: Metrics) -> None:
    metrics.estimate("ok", 1.5, 4)
    metrics.estimate("dropped", None, None)
    assert value(metrics, "alpha_estimates_total", outcome="dropped") == 1
    assert value(metrics, "alpha_age_steps") == 4


def test_checkpoints_and_their_failures(metrics: Metrics, time: FakeTime) -> None:
    assert value(metrics, "last_checkpoint_timestamp_seconds") == 0
    time.now = 2_000
    metrics.checkpoint(ok=True)
    time.now = 3_000
    metrics.checkpoint(ok=False)
    assert value(metrics, "last_checkpoint_timestamp_seconds") == 2_000
    assert value(metrics, "checkpoint_failures_total") == 1


def test_evaluations_by_split_and_rejected_rows(metrics: Metrics) -> None:
    metrics.evaluation("validation", 0.49, None, 0.86)
    metrics.rejected_rows(3)
    metrics.rejected_rows(4)
    assert value(metrics, "evaluation_loss", split="validation") == 0.49
    assert math.isnan(value(metrics, "evaluation_auc", split="validation"))
    assert math.isnan(value(metrics, "evaluation_loss", split="train"))
    assert value(metrics, "rejected_rows_total") == 7


@pytest.mark.parametrize(
    "call",
    [
        lambda metrics: metrics.phase({"sleeping": 1.0}),
        lambda metrics: metrics.estimate("perfect", 1.0, 0),
        lambda metrics: metrics.exit(0, "boredom"),
        lambda metrics: metrics.evaluation("holdout", 0.5, 0.5, 1.0),
    ],
)
def test_a_label_outside_its_enumeration_is_a_broken_invariant(metrics: Metrics, call: object) -> None:
    with pytest.raises(AssertionError, match="unknown"):
        call(metrics)  # pyright: ignore[reportCallIssue]


def test_build_info_names_the_versions(metrics: Metrics) -> None:
    sample = next(
        s for family in metrics.registry.collect() for s in family.samples if s.name == f"{PREFIX}_build_info"
    )
    assert sample.value == 1
    assert set(sample.labels) == {"version", "python", "torch"}


def test_promtool_finds_no_fault_with_the_names() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    metrics = Metrics()
    take_step(metrics)
    metrics.stages({"decode": (1.0, 10.0)})
    metrics.estimate("ok", 1.5, 4)
    command = [promtool, "check", "metrics"]
    result = subprocess.run(command, input=metrics.exposition(), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_pooled_alpha_is_unknown_until_there_is_one() -> None:
    metrics = Metrics()
    assert math.isnan(value(metrics, "alpha_pooled_relative"))
    metrics.pooled_alpha(2.0, 0.1)
    assert value(metrics, "alpha_pooled_relative") == 2.0
    assert value(metrics, "alpha_pooled_relative_standard_error") == 0.1
    metrics.pooled_alpha(None, None)
    assert math.isnan(value(metrics, "alpha_pooled_relative"))


def test_a_run_says_which_it_is_and_how_far_it_has_come() -> None:
    left: list[float | None] = [30.0]
    metrics = Metrics(seconds_left=lambda: left[0])
    metrics.run("runs/one", starts=3)
    metrics.progress(40, total_steps=100)
    assert value(metrics, "run_info", run="runs/one") == 1
    assert value(metrics, "run_starts_total") == 3
    assert [value(metrics, f"run_{name}") for name in ("step", "total_steps", "seconds_left")] == [40, 100, 30]
    metrics.progress(41, total_steps=None)
    left[0] = None
    assert math.isnan(value(metrics, "run_total_steps"))
    assert math.isnan(value(metrics, "run_seconds_left"))


def test_the_exit_code_is_none_until_there_is_one(metrics: Metrics) -> None:
    assert math.isnan(value(metrics, "exit_code"))
    assert not any(value(metrics, "exit_reason", reason=reason) for reason in EXIT_REASONS)
    metrics.exit(143, "interrupted")
    assert value(metrics, "exit_code") == 143
    assert [reason for reason in EXIT_REASONS if value(metrics, "exit_reason", reason=reason)] == ["interrupted"]


def test_device_memory_is_asked_for_at_every_scrape_and_absent_without_a_device(metrics: Metrics) -> None:
    assert "alphastream_device_memory_bytes{" not in metrics.exposition()
    sizes = {"allocated": 1.0}
    with_device = Metrics(device_memory=lambda: sizes)
    assert value(with_device, "device_memory_bytes", state="allocated") == 1
    sizes["allocated"] = 2.0
    assert value(with_device, "device_memory_bytes", state="allocated") == 2
