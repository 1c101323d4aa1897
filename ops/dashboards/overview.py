"""The board to look at first: is a run alive, how long does it take yet, and is it learning?"""

from __future__ import annotations

from ops.dashboards.panels import AnyPanel, Board, latest, lines
from ops.dashboards.queries import LEGEND, SELECTED, metric, named, per_run, rate, selector
from ops.series import PREFIX

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


def _rows() -> list[tuple[str, int, list[AnyPanel]]]:
    return [("Alive", 4, _alive()), ("How long", 8, _progress()), ("Learning", 10, _learning()), ("Kept", 8, _kept())]


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
            "Time left",
            metric("run_seconds_left"),
            unit="s",
            description="Until the budget is used up, at the speed of the latest steps and with the evaluations and "
            "checkpoints there were. Empty without a budget, and before the second step.",
        ),
        latest(
            "Since the last step",
            named(f"time() - {selector('last_progress_timestamp_seconds')}"),
            unit="s",
            steps=[(None, "green"), (120, "orange"), (900, "red")],
            description="Since a step, evaluation or checkpoint ended. From 15 minutes on AlphastreamStalled fires.",
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
            "Starts",
            metric("run_starts_total"),
            unit="none",
            decimals=0,
            description="Processes that began or continued the run, this one included.",
        ),
        latest(
            "Best validation loss",
            named(f"min_over_time({VALIDATION_LOSS}[$__range])"),
            unit="none",
            decimals=5,
            description="The lowest of the chosen time range; NaN before the first evaluation.",
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
                metric("evaluation_loss", 'split!="train"'): "{{run}} {{split}}",
            },
            from_zero=False,
            description="Mean binary cross-entropy in nats: of the latest training step, which scatters, and of the "
            "latest evaluation of each split.",
        ),
        lines(
            "AUC",
            {metric("evaluation_auc", 'split!="train"'): "{{run}} {{split}}"},
            from_zero=False,
            description="Area under the ROC curve at the latest evaluation: 0.5 is guessing, 1 is perfect.",
        ),
        lines(
            "Normalized entropy",
            {metric("evaluation_normalized_entropy", 'split!="train"'): "{{run}} {{split}}"},
            from_zero=False,
            description="Evaluation loss over the entropy of the label rate: below 1 the model knows more than that.",
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
            "Trouble",
            {
                named(f"increase({selector('checkpoint_failures_total')}[5m])"): "{{run}} failed checkpoints",
                named(f"increase({selector('rejected_rows_total')}[5m])"): "{{run}} rows left out",
                named(
                    f"sum without (cause) (increase({selector('nonfinite_steps_total')}[5m]))"
                ): "{{run}} steps withheld",
                named(f"increase({selector('rollbacks_total')}[5m])"): "{{run}} rollbacks",
                named(
                    f"sum without (cause) (increase({selector('read_retries_total')}[5m]))"
                ): "{{run}} reads tried again",
                named(f"sum without (file) (increase({selector('records_lost_total')}[5m]))"): "{{run}} records lost",
                metric("hung"): "{{run}} hangs",
            },
            description="Zero everywhere is as it should be; the alerts say what to do about most of it.",
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


BOARD = Board(
    uid=PREFIX,
    title="Alphastream",
    description="Is a run alive, how long does it take yet, and is it learning?",
    rows=_rows(),
)
