"""Generates the Grafana dashboards: `python -m ops.dashboards.generate` rewrites the JSON files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from ops.dashboards import bottleneck, overview, step_size
from ops.dashboards.panels import Board
from ops.series import PREFIX

BOARDS = (overview.BOARD, bottleneck.BOARD, step_size.BOARD)
WIDTH = 24
NOT_DRAWN = {
    "build_info": "the versions a process runs on say nothing over time; for people, and for joins of their own",
}
"""Series that are exported, and neither drawn nor alerted on, and why."""
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = PREFIX


def path(board: Board) -> Path:
    """Where a board lies in the repository; Grafana serves it as /d/UID."""
    return Path(__file__).with_name(f"{board.uid}.json")


def build(board: Board) -> dict[str, Any]:
    """One board as plain JSON values."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG, "training"])
        .readonly()
        .refresh("10s")
        .time("now-3h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_link_to_the_others())
        .annotation(_alerts())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name, label, within in (
        ("job", "Job", ""),
        ("run", "Run", 'job=~"$job"'),
        ("instance", "Address", 'job=~"$job", run=~"$run"'),
    ):
        made = made.with_variable(_variable(name, label, within))
    row_top = 0
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=row_top)))
        width = WIDTH // len(row.panels)
        for column, panel in enumerate(row.panels):
            position = models.GridPos(h=row.height, w=width, x=column * width, y=row_top + 1)
            placed = panel.datasource(DATASOURCE).grid_pos(position).links([_link_further(row.further)])
            made = made.with_panel(placed)
        row_top += row.height + 1
    values = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(values["panels"], start=1):
        panel["id"] = number
    return values


def text(board: Board) -> str:
    """A board as it lies in the repository."""
    return json.dumps(build(board), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _link_to_the_others() -> dashboard.DashboardLink:
    """To all boards of the tag, with the runs and the time that are looked at."""
    link = dashboard.DashboardLink("Alphastream").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(True).keep_time(True).as_dropdown(False)


def _link_further(uid: str) -> dashboard.DashboardLink:
    """From a panel to a board, with the runs and the time that are looked at."""
    title = next(board.title for board in BOARDS if board.uid == uid)
    link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK)
    return link.url(f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}")


def _alerts() -> dashboard.AnnotationQuery:
    """Alerts that fire, drawn over every curve."""
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertstate="firing", alertname=~"Alphastream.*", job=~"$job", instance=~"$instance"}')
    )


def _variable(name: str, label: str, within: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({PREFIX}_run_info{{{within}}}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
    )


if __name__ == "__main__":
    for one in BOARDS:
        path(one).write_text(text(one), encoding="utf-8")
