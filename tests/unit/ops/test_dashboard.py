"""The committed dashboards are the generated ones, ask only for series that exist, and in PromQL that parses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ops.dashboards import bottleneck, generate
from ops.dashboards.panels import lines
from ops.metrics import Metrics
from ops.series import PREFIX, SERIES
from ops.step_clock import PHASES

COMMITTED: dict[str, dict[str, Any]] = {
    board.uid: json.loads(generate.path(board).read_text(encoding="utf-8")) for board in generate.BOARDS
}
PANELS: list[dict[str, Any]] = [panel for board in COMMITTED.values() for panel in board["panels"]]
EXPRESSIONS = sorted({target["expr"] for panel in PANELS for target in panel.get("targets", [])})
VARIABLES = {"$__rate_interval": "5m", "$__range": "3h", "$job": ".*", "$run": ".*", "$instance": ".*"}


def exported_names() -> set[str]:
    """Every sample name of a run that has done a bit of everything."""
    metrics = Metrics(device_memory=lambda: {"free": 1.0})
    metrics.run("runs/one", starts=1)
    metrics.stages({"decode": (1.0, 10.0)})
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def test_the_committed_dashboards_are_the_generated_ones() -> None:
    for board in generate.BOARDS:
        assert generate.path(board).read_text(encoding="utf-8") == generate.text(board), (
            "run python -m ops.dashboards.generate"
        )


def test_the_first_board_keeps_its_address_and_every_board_links_to_the_others() -> None:
    assert list(COMMITTED) == ["alphastream", "alphastream-bottleneck", "alphastream-step-size"]
    for uid, board in COMMITTED.items():
        assert board["uid"] == uid
        [link] = board["links"]
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
        assert set(link["tags"]) <= set(board["tags"])


def test_alerts_are_drawn_over_the_curves() -> None:
    for board in COMMITTED.values():
        [alerts] = [one for one in board["annotations"]["list"] if "expr" in one]
        assert 'ALERTS{alertstate="firing"' in alerts["expr"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_series_asked_for_is_exported(expression: str) -> None:
    names = set(re.findall(r"\b(?:alphastream|process)_\w+", expression))
    assert names
    assert names <= exported_names()


def test_every_series_is_drawn_or_alerted_on_or_deliberately_neither() -> None:
    rules = Path(generate.__file__).parents[1] / "rules" / "alphastream.yml"
    alerts = re.findall(r"expr: (?:\|\n((?:          .*\n)+)|(.*))", rules.read_text(encoding="utf-8"))
    used = set(re.findall(rf"\b{PREFIX}_(\w+)", " ".join([*EXPRESSIONS, *(several or one for several, one in alerts)])))
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} | used
    exported = {series.name for series in SERIES}
    assert exported - plain == set(generate.NOT_DRAWN)
    assert all(generate.NOT_DRAWN.values())


def test_every_panel_links_to_another_board_and_every_curve_to_the_page_of_its_run() -> None:
    for uid, board in COMMITTED.items():
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            [link] = panel["links"]
            further = re.fullmatch(r"/d/([\w-]+)\?\$\{__url_time_range\}&\$\{__all_variables\}", link["url"])
            assert further, panel["title"]
            assert further[1] in COMMITTED.keys() - {uid}
            assert link["title"] == COMMITTED[further[1]]["title"]
            if panel["type"] != "heatmap":
                [page] = panel["fieldConfig"]["defaults"]["links"]
                assert page["url"] == "http://${__field.labels.instance}/"


def test_no_curve_of_a_panel_gets_lost() -> None:
    queries = sum(len(panel.get("targets", [])) for panel in PANELS)
    assert queries >= 75
    with pytest.raises(AssertionError, match="too many curves"):
        lines("Trouble", {f"up{{n='{number}'}}": "" for number in range(8)}, description="")


def test_several_runs_can_be_chosen_by_names_that_are_exported() -> None:
    for board in COMMITTED.values():
        variables = [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
        assert [variable["name"] for variable in variables] == ["job", "run", "instance"]
        for variable in variables:
            assert variable["multi"]
            assert variable["includeAll"]
            assert variable["query"].startswith("label_values(alphastream_run_info{")
    assert "alphastream_run_info" in exported_names()


def test_no_quantile_is_averaged_and_none_mixes_runs() -> None:
    quantiles = [expression for expression in EXPRESSIONS if "histogram_quantile" in expression]
    assert len(quantiles) >= 5
    for expression in quantiles:
        assert re.match(r"histogram_quantile\([\d.]+, sum by \(le, job, instance, run\) \(\(rate\(", expression)
    assert not [expression for expression in EXPRESSIONS if re.search(r"\bavg", expression)]


def filled(expression: str) -> str:
    """The expression as Grafana sends it with everything chosen."""
    for variable, text in VARIABLES.items():
        expression = expression.replace(variable, text)
    assert "$" not in expression
    return expression


def test_every_query_is_valid_promql(promtool: str, tmp_path: Path) -> None:
    plain = [filled(expression) for expression in EXPRESSIONS]
    rules = [{"record": f"dashboard:query:{number}", "expr": text} for number, text in enumerate(plain)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    result = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(EXPRESSIONS)} rules found" in result.stdout


@pytest.mark.parametrize("board", COMMITTED.values(), ids=COMMITTED.keys())
def test_panels_fill_the_grid_without_overlap(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= generate.WIDTH
        columns = range(position["x"], position["x"] + position["w"])
        rows = range(position["y"], position["y"] + position["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_panel_has_a_title_a_source_a_description_and_a_unit() -> None:
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"].endswith("."), panel["title"]
            assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG")[: len(panel["targets"])]
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_phase_has_a_color_of_its_own() -> None:
    panel = next(panel for panel in PANELS if panel["title"] == "Wall time by phase")
    overrides = panel["fieldConfig"]["overrides"]
    colors = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"] for override in overrides
    }
    assert tuple(colors) == PHASES == tuple(bottleneck.PHASE_COLORS)
    assert len(set(colors.values())) == len(PHASES)
