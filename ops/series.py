"""Every series a run exports: its name, unit, labels and help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ops.step_clock import PHASES

PREFIX = "alphastream"
SPLITS = ("train", "validation", "test")
EVALUATED = (*SPLITS, "progressive")
"""What is evaluated: splits, and the training batches before their step."""
OUTCOMES = ("ok", "ascent", "flat", "nonfinite", "stale", "dropped")
"""What can come of one α* estimate."""
CAUSES = ("input", "loss", "gradient")
"""What a step is withheld for if it is not finite."""
RECORD_FILES = ("steps", "alpha", "horizon", "evals", "events")
"""What a run writes down line by line."""
EXIT_REASONS = ("budget", "target", "idle", "diverged", "interrupted", "hung", "input", "io", "error")
"""Why a run ended: `input` is a bad configuration or input (2), `io` a failure of reading or writing (74)."""
SENT_FOR = (
    *("gradients", "counts", "ids", "rows", "row_gradients"),
    *("alpha_rows", "alpha", "evaluation", "control", "other"),
)
"""What ranks send to one another: summed gradients; of look-ups in a sharded table how many go to whom, their ids, rows
and gradients; rows and numbers of α*; predictions; what they agree on."""

RETRY_CAUSES = ("error", "damage")
"""Why a read was tried again."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The definition of one series; `name` is as scraped, without the prefix and `_bucket`, `_sum`, `_count`."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    """Every value the label takes, exported as 0 from the start; empty: they come from the pipeline or the build."""
    buckets: tuple[float, ...] = ()
    initial: float = 0.0
    """What a gauge shows before it is first set; NaN if 0 would be a claim."""


STEP_BUCKETS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
SAVE_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
RELATIVE_BUCKETS = (
    -100.0, -10.0, -3.0, -1.0, -0.3, 0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0,
)  # fmt: skip

SERIES = (
    Series(
        name="step_duration_seconds",
        kind="histogram",
        help="Wall time of one training step, waiting for its data included.",
        buckets=STEP_BUCKETS,
    ),
    Series(
        name="step_phase_seconds_total",
        kind="counter",
        help="Wall time by phase; the phases sum to the wall time since start_timestamp_seconds.",
        label="phase",
        values=PHASES,
    ),
    Series(
        name="rank_phase_min_seconds",
        kind="gauge",
        help="Wall time by phase over the latest stretch of about 50 steps, of the rank with the least of it; NaN on "
        "one rank.",
        label="phase",
        values=PHASES,
        initial=math.nan,
    ),
    Series(
        name="rank_phase_mean_seconds",
        kind="gauge",
        help="The same as a mean over ranks; the phases sum to the length of the stretch.",
        label="phase",
        values=PHASES,
        initial=math.nan,
    ),
    Series(
        name="rank_phase_max_seconds",
        kind="gauge",
        help="The same of the rank with the most of it.",
        label="phase",
        values=PHASES,
        initial=math.nan,
    ),
    Series(
        name="slowest_rank",
        kind="gauge",
        help="Number of the rank that the others waited for over that stretch, as it had the least communication; NaN "
        "on one rank.",
        initial=math.nan,
    ),
    Series(
        name="slowest_rank_phase_seconds",
        kind="gauge",
        help="Wall time by phase of that rank over that stretch.",
        label="phase",
        values=PHASES,
        initial=math.nan,
    ),
    Series(
        name="sent_bytes_total",
        kind="counter",
        help="Bytes that all ranks together sent to one another, checkpoints left aside; 0 on one rank.",
        label="purpose",
        values=SENT_FOR,
    ),
    Series(name="rows_total", kind="counter", help="Rows trained on (probing alone does not count)."),
    Series(name="steps_total", kind="counter", help="Training steps finished by this process."),
    Series(name="queue_batches", kind="gauge", help="Batch pairs ready and waiting for the trainer."),
    Series(
        name="stage_seconds_total",
        kind="counter",
        help="Busy time of each stage of the pipeline, summed over its threads.",
        label="stage",
    ),
    Series(name="stage_rows_total", kind="counter", help="Rows each stage of the pipeline handled.", label="stage"),
    Series(name="loss", kind="gauge", help="Mean training loss of the latest step.", initial=math.nan),
    Series(name="learning_rate", kind="gauge", help="Learning rate applied at the latest step.", initial=math.nan),
    Series(
        name="learning_rate_scheduled",
        kind="gauge",
        help="Learning rate that the schedule alone gave the latest step; the policy may have applied another.",
        initial=math.nan,
    ),
    Series(
        name="learning_rate_proposed",
        kind="gauge",
        help="Learning rate that α* proposes, pooled over the latest estimates; from 10 on, until many steps lead the "
        "rate, and not while one or two of them have most of the curvature.",
        initial=math.nan,
    ),
    Series(
        name="learning_rate_proposed_standard_error",
        kind="gauge",
        help="Standard error of learning_rate_proposed.",
        initial=math.nan,
    ),
    Series(
        name="alpha_relative",
        kind="histogram",
        help="Estimates of the factor by which a step should have been longer; 1 means just right.",
        buckets=RELATIVE_BUCKETS,
    ),
    Series(
        name="alpha_pooled_relative",
        kind="gauge",
        help="α* pooled over the latest estimates: how many times as long single steps should have been; from 10 "
        "on, until many steps lead the rate, and not while one or two of them have most of the curvature.",
        initial=math.nan,
    ),
    Series(
        name="alpha_pooled_relative_standard_error",
        kind="gauge",
        help="Standard error of alpha_pooled_relative.",
        initial=math.nan,
    ),
    Series(
        name="alpha_estimates_total",
        kind="counter",
        help="Step-size estimates by what came of them.",
        label="outcome",
        values=OUTCOMES,
    ),
    Series(
        name="alpha_age_steps",
        kind="gauge",
        help="Steps between the latest estimate's own step and its hand-over: the delay, fewer where the run ended.",
        initial=math.nan,
    ),
    Series(
        name="horizon_alpha_relative",
        kind="gauge",
        help="α* of the latest steps as a whole, as measured last: at ½ they gained nothing, at 1 they landed at the "
        "minimum along their sum.",
        initial=math.nan,
    ),
    Series(
        name="horizon_alpha_relative_standard_error",
        kind="gauge",
        help="Standard error of horizon_alpha_relative.",
        initial=math.nan,
    ),
    Series(name="horizon_steps", kind="gauge", help="How many steps that was.", initial=math.nan),
    Series(
        name="horizon_estimates_total",
        kind="counter",
        help="Measurements of many steps as a whole by what came of them.",
        label="outcome",
        values=OUTCOMES,
    ),
    Series(
        name="nonfinite_steps_total",
        kind="counter",
        help="Steps that were withheld, weights and moments left as they were, by what was not finite.",
        label="cause",
        values=CAUSES,
    ),
    Series(name="rollbacks_total", kind="counter", help="Divergences after which the run went back to a checkpoint."),
    Series(name="rate_factor", kind="gauge", help="What rollbacks have left of every rate; 1 without.", initial=1.0),
    Series(
        name="validation_worsening",
        kind="gauge",
        help="1 while the latest evaluations of validation are worse than the best ones beyond their noise, else 0.",
    ),
    Series(
        name="validation_best_step", kind="gauge", help="Step of the best evaluation of validation.", initial=math.nan
    ),
    Series(
        name="last_checkpoint_step",
        kind="gauge",
        help="Step of the latest whole checkpoint, be it the one that this process continued from.",
        initial=math.nan,
    ),
    Series(
        name="evaluation_loss",
        kind="gauge",
        help="Loss of the latest evaluation of a split.",
        label="split",
        values=EVALUATED,
        initial=math.nan,
    ),
    Series(
        name="evaluation_auc",
        kind="gauge",
        help="Area under the ROC curve of the latest evaluation of a split.",
        label="split",
        values=EVALUATED,
        initial=math.nan,
    ),
    Series(
        name="evaluation_normalized_entropy",
        kind="gauge",
        help="Loss of the latest evaluation over the entropy of the split's label rate; below 1 is useful.",
        label="split",
        values=EVALUATED,
        initial=math.nan,
    ),
    Series(
        name="evaluation_calibration",
        kind="gauge",
        help="Mean prediction over the label rate at the latest evaluation of a split; 1 is right.",
        label="split",
        values=EVALUATED,
        initial=math.nan,
    ),
    Series(name="generation", kind="gauge", help="Generation trained on, of a log that is followed.", initial=math.nan),
    Series(
        name="generations_waiting",
        kind="gauge",
        help="Generations of a followed log that are there, after the one trained on.",
    ),
    Series(
        name="log_rows",
        kind="gauge",
        help="Training rows of all generations of a followed log that are there.",
        initial=math.nan,
    ),
    Series(
        name="log_rows_waiting",
        kind="gauge",
        help="Training rows of a followed log that are there and not trained on yet.",
        initial=math.nan,
    ),
    Series(
        name="waiting_for_generation",
        kind="gauge",
        help="1 while a followed log has no more rows and the next generation is waited for: no fault of the pipeline.",
    ),
    Series(
        name="generation_wait_seconds_total",
        kind="counter",
        help="Time waited for generations that were not there yet; it is part of phase data_wait.",
    ),
    Series(name="start_timestamp_seconds", kind="gauge", help="Unix time from which phases are counted."),
    Series(
        name="last_progress_timestamp_seconds",
        kind="gauge",
        help="Unix time at which the latest step, evaluation or checkpoint ended.",
    ),
    Series(
        name="last_checkpoint_timestamp_seconds",
        kind="gauge",
        help="Unix time of the latest whole checkpoint of this process; 0 before the first.",
    ),
    Series(name="checkpoint_failures_total", kind="counter", help="Checkpoints that could not be written."),
    Series(
        name="watchdog_hangs_total",
        kind="counter",
        help="Times that one thing took longer than the watchdog's budget for it, by the phase it was in.",
        label="phase",
        values=PHASES,
    ),
    Series(name="hung", kind="gauge", help="1 while something takes longer than the watchdog's budget for it, else 0."),
    Series(
        name="read_retries_total",
        kind="counter",
        help="Reads of shards that were tried again: after an error of disk or network, or because bytes were damaged.",
        label="cause",
        values=RETRY_CAUSES,
    ),
    Series(
        name="uncached_reads_total",
        kind="counter",
        help="Row groups of remote shards read past the cache, as its disk is full or read-only: each time over the "
        "network.",
    ),
    Series(
        name="checkpoint_seconds",
        kind="histogram",
        help="Time in which a checkpoint was written, most of it beside training.",
        buckets=SAVE_BUCKETS,
    ),
    Series(
        name="checkpoint_bytes",
        kind="gauge",
        help="Size of the latest whole checkpoint of this process; before the first, the size it will have.",
        initial=math.nan,
    ),
    Series(
        name="disk_free_bytes",
        kind="gauge",
        help="Free space on the disk of the run directory; a checkpoint beyond it makes older ones go, or fails.",
        initial=math.nan,
    ),
    Series(name="rejected_rows_total", kind="counter", help="Rows left out of the stream because they were damaged."),
    Series(
        name="records_waiting",
        kind="gauge",
        help="Records that could not be written yet and are kept in memory; 0 while the run directory takes them.",
        label="file",
        values=RECORD_FILES,
    ),
    Series(
        name="records_lost_total",
        kind="counter",
        help="Records lost because more of them waited than memory should hold.",
        label="file",
        values=RECORD_FILES,
    ),
    Series(
        name="console_lines_lost_total",
        kind="counter",
        help="Lines for people that standard error did not take: closed, full, or nobody reads it.",
    ),
    Series(
        name="device_memory_bytes",
        kind="gauge",
        help="Memory of the GPU: in tensors, held by this process's allocator, free, all there is; none without a GPU.",
        label="state",
    ),
    Series(name="run_info", kind="info", help="Which run this is: `run` is its directory as given; always 1."),
    Series(name="run_step", kind="gauge", help="Steps done of the run, those of earlier processes included."),
    Series(
        name="run_total_steps",
        kind="gauge",
        help="Steps at which the budget ends; NaN if it counts neither steps nor epochs.",
        initial=math.nan,
    ),
    Series(
        name="run_seconds_left",
        kind="gauge",
        help="Time until the budget is used up, at the latest minutes' speed, evaluations included; NaN if not known.",
        initial=math.nan,
    ),
    Series(
        name="run_starts_total",
        kind="counter",
        help="Processes that began or continued this run, this one included; goes on over restarts.",
    ),
    Series(
        name="exit_code",
        kind="gauge",
        help="Exit code of a run that ended: 0, 1, 2, 3, 74 or 143; NaN before.",
        initial=math.nan,
    ),
    Series(
        name="exit_reason",
        kind="gauge",
        help="1 for the reason by which the run ended.",
        label="reason",
        values=EXIT_REASONS,
    ),
    Series(name="build_info", kind="info", help="Versions this process runs on; always 1."),
)
DEFINITION = {series.name: series for series in SERIES}
