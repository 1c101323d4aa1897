"""What bounds the speed of a run: data or computing, which stage of the pipeline, and what to widen."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from ops.bound import COMMUNICATION_BOUND_SHARE, DATA_BOUND_SHARE, PAUSE_BOUND_SHARE
from ops.dashboards.panels import AnyPanel, Board, Row, latest, lines, stacked
from ops.dashboards.queries import (
    BOTTLENECK,
    EACH,
    LEGEND,
    OVERVIEW,
    SELECTED,
    STEP_SIZE,
    known,
    metric,
    named,
    per_run,
    quantile,
    rate,
)
from ops.step_clock import PHASES

# The same colors as the report and the live page, told apart with any kind of color vision.
PHASE_COLORS = dict(
    zip(
        PHASES,
        ("#D55E00", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#882255", "#7A5CC0", "#8C6D46", "#A3ABB4"),
        strict=True,
    )
)


def _rows() -> list[Row]:
    return [
        Row(title="Data or computing", height=5, further=OVERVIEW, panels=_verdict()),
        Row(title="Where the time goes", height=10, further=STEP_SIZE, panels=_time()),
        Row(title="Ranks", height=9, further=OVERVIEW, panels=_ranks()),
        Row(title="Which stage", height=9, further=OVERVIEW, panels=_stages()),
        Row(title="Room for more", height=8, further=OVERVIEW, panels=_room()),
    ]


def _share(phases: str, *, window: str = "5m") -> str:
    spent = per_run(rate("step_phase_seconds_total", f'phase=~"{phases}"', window=window))
    return f"{spent} / {per_run(rate('step_phase_seconds_total', window=window))}"


def _verdict() -> list[AnyPanel]:
    return [
        latest(
            "Waiting for data",
            _share("data_wait"),
            unit="percentunit",
            decimals=1,
            steps=[(None, "green"), (DATA_BOUND_SHARE, "orange")],
            description=f"Of the latest five minutes. From {100 * DATA_BOUND_SHARE:.0f} % on the pipeline is the "
            "bottleneck: rows are fetched ahead, so a wait that can be seen is a pipeline that cannot keep up. "
            "The wait of a followed log for new rows is in it too; no alert and no verdict takes it for a slow one.",
        ),
        latest(
            "Evaluating and saving",
            _share("evaluation|checkpoint"),
            unit="percentunit",
            decimals=1,
            steps=[(None, "green"), (PAUSE_BOUND_SHARE, "orange")],
            description="Of the latest five minutes. Less of it: a longer eval.every_steps, or fewer eval.rows.",
        ),
        latest(
            "Communicating",
            _share("communication"),
            unit="percentunit",
            decimals=1,
            steps=[(None, "green"), (COMMUNICATION_BOUND_SHARE, "orange")],
            description="Of the latest five minutes: exchanges with other ranks, waiting for the slowest of them "
            "included. None on one rank.",
        ),
        latest(
            "Measuring α*",
            _share("alpha"),
            unit="percentunit",
            decimals=1,
            description="Of the latest five minutes. Less of it: a longer stepsize.interval.",
        ),
        latest(
            "Batches ready",
            metric("queue_batches"),
            unit="none",
            decimals=0,
            steps=[(None, "orange"), (1, "green")],
            description="Batch pairs that wait for the trainer. None, while it waits: data-bound.",
        ),
    ]


def _time() -> list[AnyPanel]:
    phases = per_run(rate("step_phase_seconds_total"), by="phase")
    everything = per_run(rate("step_phase_seconds_total"))
    shares = stacked(
        lines(
            "Wall time by phase",
            {f"{phases} / on {EACH} group_left () {everything}": "{{phase}}"},
            unit="percentunit",
            description="The phases of a run sum to its wall time: every moment belongs to exactly one, also the "
            "one that is open now. One panel a run.",
        )
        .max(1)
        .repeat("run")
    )
    for phase, color in PHASE_COLORS.items():
        fixed = models.FieldColor(mode=models.FieldColorModeId.FIXED, fixed_color=color)
        shares = shares.override_by_name(phase, [models.DynamicConfigValue(id_val="color", value=fixed)])
    durations = {
        quantile(share, "step_duration_seconds", window="$__rate_interval"): f"{{{{run}}}} {name}"
        for share, name in ((0.5, "median"), (0.99, "99th percentile"))
    }
    description = "Quantiles of each run's own histogram. A median that is calm under a 99th percentile that is not: "
    description += "single steps wait, for a shard's first row group or for a neighbor on the machine."
    return [shares, lines("Time of a step", durations, unit="s", description=description)]


def _ranks() -> list[AnyPanel]:
    stretch = per_run(metric("rank_phase_mean_seconds"))
    excess = metric("slowest_rank_phase_seconds", 'phase!="communication"')
    others = metric("rank_phase_mean_seconds", 'phase!="communication"')
    more = f"({per_run(excess, by='phase')} - {per_run(others, by='phase')}) / on {EACH} group_left () {stretch}"
    least, most = (
        f"{per_run(metric(f'rank_phase_{name}_seconds'), by='phase')} / on {EACH} group_left () {stretch}"
        for name in ("min", "max")
    )
    return [
        latest(
            "Slowest rank",
            known("slowest_rank"),
            unit="none",
            decimals=0,
            description="Number of the rank that the others waited for over the latest 50 steps or so: the one with "
            "the least communication. Empty on one rank.",
        ),
        lines(
            "What the slowest rank does for longer",
            {f"{more} > 0": "{{run}} {{phase}}"},
            unit="percentunit",
            description="Its phases less the mean of all ranks, as shares of wall time: what the others wait for. "
            "Close to nothing in all phases: the ranks are alike.",
        ),
        lines(
            "Phases over ranks, least and most",
            {f"{least} >= 0": "{{run}} {{phase}}, least", f"{most} >= 0": "{{run}} {{phase}}, most"},
            unit="percentunit",
            description="As shares of wall time, over the latest 50 steps or so. Where least and most are far apart, "
            "ranks differ.",
        ),
        lines(
            "Bytes sent by purpose",
            {f"{per_run(rate('sent_bytes_total'), by='purpose')} > 0": "{{run}} {{purpose}}"},
            unit="Bps",
            description="By all ranks together, checkpoints left aside; ops/SCALE.md has what a step takes on paper.",
        ),
    ]


def _stages() -> list[AnyPanel]:
    seconds = per_run(rate("stage_seconds_total"), by="stage")
    handled = per_run(rate("stage_rows_total"), by="stage")
    return [
        lines(
            "Rows per busy second by stage",
            {f"{handled} / {seconds}": "{{run}} {{stage}}"},
            description="What one thread of a stage could do alone: the slowest one is worth widening. source_read, "
            "decompress, decode and shuffle share data.read_threads; `alphastream stall CONFIG` tells what more would "
            "gain.",
        ),
        lines(
            "Busy threads by stage",
            {seconds: "{{run}} {{stage}}"},
            description="Busy seconds per second: a stage as busy as it has threads is the bottleneck.",
        ),
        lines(
            "Rows per second by stage",
            {handled: "{{run}} {{stage}}"},
            description="What passes each stage. They are equal while nothing piles up between two.",
        ),
    ]


def _room() -> list[AnyPanel]:
    return [
        lines(
            "Batches ready",
            {metric("queue_batches"): LEGEND},
            description="A queue that is mostly full: computing is the bottleneck; mostly empty: the data.",
        ),
        lines(
            "Busy cores",
            {named(f"rate(process_cpu_seconds_total{{{SELECTED}}}[$__rate_interval])"): LEGEND},
            description="Of this process. As many as the machine has: more data.read_threads gain nothing.",
        ),
        lines(
            "GPU memory free",
            {metric("device_memory_bytes", 'state="free"'): LEGEND},
            unit="bytes",
            description="Room for a larger data.batch_rows, which makes a row cheaper where kernels are small. "
            "Empty without a GPU.",
        ),
    ]


BOARD = Board(
    uid=BOTTLENECK,
    title="Alphastream: bottleneck",
    description="Is training bound by its data or by computing, by which stage, and what should be wider?",
    rows=_rows(),
)
