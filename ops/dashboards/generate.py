"""Generates the Grafana dashboard: `python -m ops.dashboards.generate` rewrites alphastream.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ops.series import PREFIX
from ops.step_clock import DATA_BOUND_SHARE, PHASES

PATH = Path(__file__).with_name("alphastream.json")
WIDTH = 24
SELECTED = 'instance=~"$instance"'
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# The same colors as the report and the live page, told apart with any kind of color vision.
PHASE_COLORS = dict(
    zip(
        PHASES,
        ("#D55E00", "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#7A5CC0", "#8C6D46", "#A3ABB4"),
        strict=True,
    )
)

AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel


def metric(name: str, labels: str = "") -> str:
    """A selector of one of our series, for the runs chosen at the top of the dashboard."""
    return f"{PREFIX}_{name}{{{SELECTED}{labels and ', ' + labels}}}"


def rate(name: str, labels: str = "", *, window: str = "$__rate_interval") -> str:
    """The rate of a counter per second."""
    return f"rate({metric(name, labels)}[{window}])"


def alpha_quantile(share: float) -> str:
    """A quantile of α* relative, over long enough a window to hold some estimates."""
    buckets = rate("alpha_relative_bucket", window="30m")
    return f"histogram_quantile({share}, sum by (le, instance) ({buckets}))"


def build() -> dict[str, Any]:
    """The dashboard as plain JSON values."""
    board = (
        dashboard.Dashboard("Alphastream")
        .uid("alphastream")
        .description("Is training bound by its data, is its learning rate right, and is it getting anywhere?")
        .tags(["alphastream", "training"])
        .readonly()
        .refresh("10s")
        .time("now-3h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_run_variable())
    )
    row_top = 0
    for title, height, panels in _rows():
        board = board.with_row(dashboard.Row(title).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=row_top)))
        width = WIDTH // len(panels)
        for column, panel in enumerate(panels):
            position = models.GridPos(h=height, w=width, x=column * width, y=row_top + 1)
            board = board.with_panel(panel.datasource(DATASOURCE).grid_pos(position))
        row_top += height + 1
    values = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(values["panels"], start=1):
        panel["id"] = number
    return values


def text() -> str:
    """The dashboard as it lies in the repository."""
    return json.dumps(build(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _rows() -> list[tuple[str, int, list[AnyPanel]]]:
    return [
        ("At a glance", 4, _glance()),
        ("Where the time goes", 9, _time()),
        ("The pipeline, stage by stage", 8, _pipeline()),
        ("Learning", 9, _learning()),
        ("Step size α*", 9, _step_size()),
        ("The process", 7, _process()),
    ]


def _glance() -> list[AnyPanel]:
    waiting = rate("step_phase_seconds_total", 'phase="data_wait"', window="5m")
    total = rate("step_phase_seconds_total", window="5m")
    return [
        _stat("Rows per second", f"sum({rate('rows_total', window='5m')})", unit="short", decimals=0),
        _stat("Steps", f"sum({metric('steps_total')})", unit="short", decimals=0),
        _stat(
            "Time waiting for data",
            f"sum({waiting}) / sum({total})",
            unit="percentunit",
            steps=[(None, "green"), (DATA_BOUND_SHARE, "orange")],
            description=f"From {100 * DATA_BOUND_SHARE:.0f} % on, the pipeline is the bottleneck.",
        ),
        _stat(
            "α*, times the applied step",
            f"avg({metric('alpha_pooled_relative')})",
            unit="none",
            decimals=2,
            description="Pooled over the latest 200 estimates; nothing before the tenth.",
        ),
        _stat(
            "Since the last step",
            f"max(time() - {metric('last_progress_timestamp_seconds')})",
            unit="s",
            steps=[(None, "green"), (120, "orange"), (900, "red")],
        ),
        _stat(
            "Since the last checkpoint",
            f"max(time() - ({metric('last_checkpoint_timestamp_seconds')} > 0))",
            unit="s",
            steps=[(None, "green"), (7200, "orange")],
        ),
    ]


def _time() -> list[AnyPanel]:
    phases = f"sum by (phase) ({rate('step_phase_seconds_total')})"
    everything = f"scalar(sum({rate('step_phase_seconds_total')}))"
    shares = (
        _lines("Wall time by phase", {f"{phases} / {everything}": "{{phase}}"}, unit="percentunit")
        .max(1)
        .fill_opacity(85)
        .line_width(0)
        .stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        .description("The phases sum to the wall time: every moment belongs to exactly one.")
    )
    for phase, color in PHASE_COLORS.items():
        fixed = models.FieldColor(mode=models.FieldColorModeId.FIXED, fixed_color=color)
        shares = shares.override_by_name(phase, [models.DynamicConfigValue(id_val="color", value=fixed)])
    buckets = f"sum by (le, instance) ({rate('step_duration_seconds_bucket')})"
    durations = {
        f"histogram_quantile({share}, {buckets})": f"{{{{instance}}}} {name}"
        for share, name in ((0.5, "median"), (0.99, "99th percentile"))
    }
    return [shares, _lines("Time of a step", durations, unit="s")]


def _pipeline() -> list[AnyPanel]:
    seconds, rows = rate("stage_seconds_total"), rate("stage_rows_total")
    return [
        _lines(
            "Busy threads by stage",
            {f"sum by (stage) ({seconds})": "{{stage}}"},
            unit="short",
            description="Busy seconds per second: a stage near its number of threads is the bottleneck.",
        ),
        _lines(
            "Rows per busy second by stage",
            {f"sum by (stage) ({rows}) / sum by (stage) ({seconds})": "{{stage}}"},
            unit="short",
            description="What one thread of a stage could do alone; the slowest one is worth widening.",
        ),
        _lines("Batches waiting for the trainer", {metric("queue_batches"): "{{instance}}"}, unit="short"),
    ]


def _learning() -> list[AnyPanel]:
    return [
        _lines(
            "Loss",
            {metric("loss"): "{{instance}} training", metric("evaluation_loss"): "{{instance}} {{split}}"},
            from_zero=False,
        ),
        _lines("AUC", {metric("evaluation_auc"): "{{instance}} {{split}}"}, from_zero=False),
        _lines(
            "Learning rate applied, and the rate that α* suggests",
            {
                metric("learning_rate"): "{{instance}} applied",
                f"{metric('alpha_pooled_relative')} * on (instance) {metric('learning_rate')}": "{{instance}} by α*",
                **{
                    f"{alpha_quantile(share)} * on (instance) {metric('learning_rate')}": f"{{{{instance}}}} {name}"
                    for share, name in ((0.25, "lower quartile of estimates"), (0.75, "upper quartile of estimates"))
                },
            },
            unit="sci",
            description="Where the suggested rate runs above the applied one, longer steps would pay. The quartiles "
            "are the spread of single estimates over 30 minutes.",
            from_zero=False,
        ),
    ]


def _step_size() -> list[AnyPanel]:
    outcomes = f"sum by (outcome) ({rate('alpha_estimates_total', window='5m')})"
    spread = (
        heatmap.Panel()
        .title("Spread of α* relative to the step")
        .description("1 means that the step was just right; below 0 the step climbed on fresh rows.")
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .with_target(
            prometheus.Dataquery()
            .expr(f"sum by (le) (increase({metric('alpha_relative_bucket')}[$__rate_interval]))")
            .format(PromQueryFormat.HEATMAP)
            .legend_format("{{le}}")
            .ref_id("A")
        )
    )
    return [
        spread,
        _lines("Estimates per second by outcome", {outcomes: "{{outcome}}"}, unit="short")
        .fill_opacity(60)
        .stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)),
        _lines("Age of an estimate", {metric("alpha_age_steps"): "{{instance}}"}, unit="short"),
    ]


def _process() -> list[AnyPanel]:
    return [
        _lines("Memory", {f"process_resident_memory_bytes{{{SELECTED}}}": "{{instance}}"}, unit="bytes"),
        _lines("Busy cores", {f"rate(process_cpu_seconds_total{{{SELECTED}}}[$__rate_interval])": "{{instance}}"}),
        _lines(
            "Trouble",
            {
                f"increase({metric('checkpoint_failures_total')}[5m])": "{{instance}} failed checkpoints",
                f"increase({metric('rejected_rows_total')}[5m])": "{{instance}} rows left out",
            },
        ),
    ]


def _run_variable() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("instance")
        .label("Run")
        .datasource(DATASOURCE)
        .query(f"label_values({PREFIX}_build_info, instance)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
    )


def _lines(
    title: str, targets: dict[str, str], *, unit: str = "short", description: str = "", from_zero: bool = True
) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .line_width(2)
        .fill_opacity(5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if from_zero:
        panel = panel.min(0)
    for name, (expression, legend) in zip("ABCDEFG", targets.items(), strict=False):
        panel = panel.with_target(prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(name))
    return panel


def _stat(
    title: str,
    expression: str,
    *,
    unit: str,
    decimals: int | None = None,
    steps: list[tuple[float | None, str]] | None = None,
    description: str = "",
) -> stat.Panel:
    thresholds = [models.Threshold(value=value, color=color) for value, color in steps or [(None, "text")]]
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds))
        .with_target(prometheus.Dataquery().expr(expression).ref_id("A"))
    )
    return panel if decimals is None else panel.decimals(decimals)


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
