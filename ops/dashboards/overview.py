"""The board to look at first: is a run alive, how long does it take yet, and is it learning?"""

from __future__ import annotations

from ops.dashboards.panels import AnyPanel, Board, Row, latest, lines
from ops.dashboards.queries import (
    BOTTLENECK,
    LEGEND,
    OVERVIEW,
    SELECTED,
    STEP_SIZE,
    known,
    metric,
    named,
    per_run,
    rate,
    selector,
)

STATES = {
    "-1": ("running", "green"),
    "-2": ("gone without a word", "red"),
    "0": ("done", "blue"),
    "1": ("failed", "red"),
    "2": ("bad configuration or input", "red"),
    "3": ("diverged", "red"),
    "74": ("I/O failed", "red"),
    "143": ("stopped, resumable", "orange"),
}
"""Exit codes of runs that ended; below zero, runs that did not, or not by themselves."""
STATE = (
    f"(last_over_time({selector('exit_code')}[$__range]) >= 0) or (0 * {selector('run_step')} - 1) "
    f"or (0 * last_over_time({selector('run_step')}[$__range]) - 2)"
)
VALIDATION_LOSS = selector("evaluation_loss", 'split="validation"')


SPLITS = 'split=~"validation|test"'
PROGRESSIVE = 'split="progressive"'


def _rows() -> list[Row]:
    return [
        Row(title="Alive", height=4, further=BOTTLENECK, panels=_alive()),
        Row(title="In numbers", height=4, further=STEP_SIZE, panels=_numbers()),
        Row(title="How long", height=8, further=BOTTLENECK, panels=_progress()),
        Row(title="Learning", height=10, further=STEP_SIZE, panels=_learning()),
        Row(title="A log that grows", height=8, further=BOTTLENECK, panels=_growing()),
        Row(title="Kept", height=8, further=BOTTLENECK, panels=_kept()),
        Row(title="Trouble", height=8, further=BOTTLENECK, panels=_trouble()),
    ]


def _alive() -> list[AnyPanel]:
    return [
        latest(
            "State",
            STATE,
            unit="none",
            texts=STATES,
            legend="{{instance}}",
            description="By the exit code, which a run that is scraped at intervals waits to show. Gone without a "
            "word: the process was killed, or ended between two scrapes. The same command continues any of them.",
        ),
        latest(
            "Why it ended",
            f"last_over_time({selector('exit_reason')}[$__range]) == 1",
            unit="none",
            legend="{{instance}} {{reason}}",
            legend_alone=True,
            description="Of runs that ended in the time that is looked at. budget, target and idle: as they should; "
            "interrupted: by a signal. What the others mean stands in RUN/events.jsonl, with what to do.",
        ),
        latest(
            "Since the last step",
            named(f"time() - {selector('last_progress_timestamp_seconds')}"),
            unit="s",
            steps=[(None, "green"), (120, "orange"), (900, "red")],
            description="Since a step, evaluation or checkpoint ended. From 15 minutes on AlphastreamStalled fires.",
        ),
        latest(
            "Starts",
            metric("run_starts_total"),
            unit="none",
            decimals=0,
            description="Processes that began or continued the run, this one included.",
        ),
    ]


def _numbers() -> list[AnyPanel]:
    return [
        latest(
            "Time left",
            metric("run_seconds_left"),
            unit="s",
            description="Until the budget is used up, at the speed of the latest steps and with the evaluations and "
            "checkpoints there were. Empty without a budget, and before the second step.",
        ),
        latest(
            "Since the last checkpoint",
            named(
                f"time() - ({selector('last_checkpoint_timestamp_seconds')} > 0 "
                f"or {selector('start_timestamp_seconds')})"
            ),
            unit="s",
            steps=[(None, "green"), (14400, "orange")],
            description="What a crash now would cost: the work since the last whole checkpoint of this process, or "
            "since its start before the first.",
        ),
        latest(
            "Best validation loss",
            named(f"min_over_time({VALIDATION_LOSS}[$__range])"),
            unit="none",
            decimals=5,
            description="The lowest of the chosen time range; NaN before the first evaluation.",
        ),
        latest(
            "Validation",
            metric("validation_worsening"),
            unit="none",
            texts={"0": ("fine", "green"), "1": ("worse than its best", "orange")},
            description="Whether the latest evaluations are worse than the best ones by more than they scatter: the "
            "model forgets, or learns its rows by heart. Steps done, saved and best tells where to go back to.",
        ),
    ]


def _progress() -> list[AnyPanel]:
    return [
        lines(
            "Share of the steps done",
            {named(f"{selector('run_step')} / {selector('run_total_steps')}"): LEGEND},
            unit="percentunit",
            description="Steps done over those of the budget, earlier processes included; of no budget in seconds.",
        ),
        lines(
            "Time left",
            {metric("run_seconds_left"): LEGEND},
            unit="s",
            description="A line that does not fall is a run that is getting slower.",
        ),
        lines(
            "Rows per second",
            {per_run(rate("rows_total")): LEGEND},
            description="By wall time, evaluations and checkpoints included.",
        ),
    ]


def _learning() -> list[AnyPanel]:
    return [
        lines(
            "Loss",
            {
                metric("loss"): "{{run}} training",
                known("evaluation_loss", SPLITS): "{{run}} {{split}}",
            },
            from_zero=False,
            description="Mean binary cross-entropy in nats: of the latest training step, which scatters, and of the "
            "latest evaluation of each split.",
        ),
        lines(
            "AUC",
            {known("evaluation_auc", SPLITS): "{{run}} {{split}}"},
            from_zero=False,
            description="Area under the ROC curve at the latest evaluation: 0.5 is guessing, 1 is perfect.",
        ),
        lines(
            "Normalized entropy",
            {known("evaluation_normalized_entropy", SPLITS): "{{run}} {{split}}"},
            from_zero=False,
            description="Evaluation loss over the entropy of the label rate: below 1 the model knows more than that.",
        ),
        lines(
            "Calibration",
            {known("evaluation_calibration", SPLITS): "{{run}} {{split}}"},
            from_zero=False,
            description="Mean prediction over the label rate at the latest evaluation: 1 is right, above 1 the model "
            "promises too many clicks.",
        ),
    ]


def _growing() -> list[AnyPanel]:
    return [
        lines(
            "Generations of the log",
            {
                known("generation"): "{{run}} trained on",
                f"{metric('generations_waiting')} and on (job, instance) {selector('generation')} >= 0": (
                    "{{run}} waiting after it"
                ),
            },
            description="Of a followed log: the number of the one that is trained on, from 0, and how many are there "
            "after it. Waiting ones that grow in number: training is slower than the log. Empty without data.follow.",
        ),
        lines(
            "Rows of the log",
            {
                known("log_rows"): "{{run}} arrived",
                known("log_rows_waiting"): "{{run}} not trained on yet",
            },
            description="Training rows of the generations of a followed log. Empty without data.follow.",
        ),
        lines(
            "Waiting for new rows",
            {
                f"{per_run(rate('generation_wait_seconds_total', window='5m'))} "
                f"/ {per_run(rate('step_phase_seconds_total', window='5m'))}": LEGEND
            },
            unit="percentunit",
            description="Share of the time in which a followed log had no more rows: the trainer keeps up with it. No "
            "fault of the pipeline, and left out of its verdict.",
        ),
        lines(
            "Progressive validation",
            {
                known("evaluation_loss", PROGRESSIVE): "{{run}} loss",
                known("evaluation_auc", PROGRESSIVE): "{{run}} AUC",
                known("evaluation_calibration", PROGRESSIVE): "{{run}} calibration",
            },
            from_zero=False,
            description="Of the latest rows of a followed log before they were trained on: what the model knows of "
            "rows that it has not seen, without an evaluation. Empty without data.follow.",
        ),
    ]


def _kept() -> list[AnyPanel]:
    return [
        lines(
            "Room on the disk of the run directory",
            {
                metric("disk_free_bytes"): "{{run}} free",
                metric("checkpoint_bytes"): "{{run}} one checkpoint",
            },
            unit="bytes",
            description="Where the free space falls below the size of a checkpoint, older ones are removed for it, or "
            "it fails.",
        ),
        lines(
            "Time to write a checkpoint",
            {
                f"{per_run(rate('checkpoint_seconds_sum', window='1h'))} "
                f"/ {per_run(rate('checkpoint_seconds_count', window='1h'))}": LEGEND
            },
            unit="s",
            description="Mean over the last hour; most of it passes beside training. Empty while none is written.",
        ),
        lines(
            "Steps done, saved, and of the best evaluation",
            {
                metric("run_step"): "{{run}} done",
                known("last_checkpoint_step"): "{{run}} saved",
                known("validation_best_step"): "{{run}} best evaluation",
            },
            description="What `--from-checkpoint` can go back to, and where validation was best. A line of steps that "
            "falls is a rollback, or a run that was continued from its checkpoint.",
        ),
        lines(
            "Memory",
            {
                named(f"process_resident_memory_bytes{{{SELECTED}}}"): "{{run}} process",
                metric("device_memory_bytes", 'state="allocated"'): "{{run}} GPU, in tensors",
                metric("device_memory_bytes", 'state="reserved"'): "{{run}} GPU, reserved",
                metric("device_memory_bytes", 'state="total"'): "{{run}} GPU, all there is",
            },
            unit="bytes",
            description="Of the process, and of its GPU if it has one: what tensors take, what the allocator holds.",
        ),
    ]


def _trouble() -> list[AnyPanel]:
    return [
        lines(
            "Trouble in training",
            {
                _increase("nonfinite_steps_total", "cause"): "{{run}} steps withheld",
                _increase("rollbacks_total"): "{{run}} rollbacks",
                _increase("watchdog_hangs_total", "phase"): "{{run}} hangs",
                metric("hung"): "{{run}} hangs now",
            },
            description="Of five minutes each. Zero is as it should be; alerts say what to do.",
        ),
        lines(
            "Trouble with data",
            {
                _increase("rejected_rows_total"): "{{run}} rows left out",
                _increase("read_retries_total", "cause"): "{{run}} reads tried again",
                _increase("uncached_reads_total"): "{{run}} reads past the cache",
            },
            description="Of five minutes each. Zero is as it should be; alerts say what to do.",
        ),
        lines(
            "Trouble with the run directory",
            {
                _increase("checkpoint_failures_total"): "{{run}} failed checkpoints",
                named(f"sum without (file) ({selector('records_waiting')})"): "{{run}} records that cannot be written",
                _increase("records_lost_total", "file"): "{{run}} records lost",
                _increase("console_lines_lost_total"): "{{run}} lines that standard error did not take",
            },
            description="Of five minutes each, but for records that cannot be written now and wait. Zero is as it "
            "should be; alerts say what to do about most of it. Lost lines are in RUN/events.jsonl too.",
        ),
    ]


def _increase(name: str, label: str = "") -> str:
    """What a counter grew by in five minutes, over all values of its label."""
    grown = f"increase({selector(name)}[5m])"
    return named(f"sum without ({label}) ({grown})" if label else grown)


BOARD = Board(
    uid=OVERVIEW,
    title="Alphastream",
    description="Is a run alive, how long does it take yet, and is it learning?",
    rows=_rows(),
)
