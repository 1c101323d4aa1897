"""What the dashboards are made of: single numbers, curves and heatmaps, each with a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ops.dashboards.queries import LEGEND

AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel
Steps = Sequence[tuple[float | None, str]]
"""Colors from values on, the first one's None."""


NAMES = "ABCDEFG"
"""Of a panel's queries."""
LIVE_PAGE = "http://${__field.labels.instance}/"
"""Of the run that a curve or number is of, where its address can be reached."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels of one height side by side, each with a link to the board that goes further into what they show."""

    title: str
    height: int
    further: str
    """Address of that board."""
    panels: list[AnyPanel]


@dataclass(frozen=True, kw_only=True)
class Board:
    """One dashboard."""

    uid: str
    """Its address in Grafana, /d/UID, and its file's name."""
    title: str
    description: str
    rows: list[Row]


def lines(
    title: str, targets: dict[str, str], *, description: str, unit: str = "short", from_zero: bool = True
) -> timeseries.Panel:
    """Curves over time: `targets` are expressions with their legends."""
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
        .data_links([_live_page()])
    )
    if from_zero:
        panel = panel.min(0)
    assert len(targets) <= len(NAMES), f"{title}: too many curves"
    for name, (expression, legend) in zip(NAMES, targets.items(), strict=False):
        panel = panel.with_target(prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(name))
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """The same curves on top of one another."""
    stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
    return panel.fill_opacity(70).line_width(0).stacking(stacking)


def latest(
    title: str,
    expression: str,
    *,
    description: str,
    unit: str,
    decimals: int | None = None,
    steps: Steps = ((None, "text"),),
    texts: dict[str, tuple[str, str]] | None = None,
    legend: str = LEGEND,
    legend_alone: bool = False,
) -> stat.Panel:
    """The latest value of every run beside the others; `texts` gives values a text and a color.

    With `legend_alone` the legend is shown and not the value.
    """
    thresholds = [models.Threshold(value=value, color=color) for value, color in steps]
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds))
        .data_links([_live_page()])
        .with_target(prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("A"))
    )
    if legend_alone:
        panel = panel.text_mode(common_models.BigValueTextMode.NAME)
    if texts is not None:
        results = {value: models.ValueMappingResult(text=text, color=color) for value, (text, color) in texts.items()}
        panel = panel.mappings([models.ValueMap(options=results)])
    return panel if decimals is None else panel.decimals(decimals)


def _live_page() -> dashboard.DashboardLink:
    """From a run's curve or number to the page that the run itself serves."""
    link = dashboard.DashboardLink("Live page of ${__field.labels.run}").type(models.DashboardLinkType.LINK)
    return link.url(LIVE_PAGE).target_blank(True)


def spread(title: str, expression: str, *, description: str) -> heatmap.Panel:
    """A histogram's buckets over time."""
    query = prometheus.Dataquery().expr(expression).format(PromQueryFormat.HEATMAP).legend_format("{{le}}")
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .with_target(query.ref_id("A"))
    )
