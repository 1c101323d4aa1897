"""The committed dashboard is the generated one, asks only for series that exist, and in PromQL that parses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ops.dashboards import generate
from ops.metrics import Metrics
from ops.step_clock import PHASES

COMMITTED = json.loads(generate.PATH.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = COMMITTED["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def exported_names() -> set[str]:
    """Every sample name of a run that has done a bit of everything."""
    metrics = Metrics()
    metrics.stages({"decode": (1.0, 10.0)})
    return {sample.name for family in metrics.registry.collect() for sample in family.samples}


def test_the_committed_dashboard_is_the_generated_one() -> None:
    assert generate.PATH.read_text(encoding="utf-8") == generate.text(), "run python -m ops.dashboards.generate"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_series_asked_for_is_exported(expression: str) -> None:
    names = set(re.findall(r"\b(?:alphastream|process)_\w+", expression))
    assert names
    assert names <= exported_names()


def test_the_run_variable_reads_a_series_that_is_exported() -> None:
    queries = [variable["query"] for variable in COMMITTED["templating"]["list"] if variable["type"] == "query"]
    assert queries == ["label_values(alphastream_build_info, instance)"]
    assert "alphastream_build_info" in exported_names()


def test_every_query_is_valid_promql(promtool: str, tmp_path: Path) -> None:
    plain = [expression.replace("$__rate_interval", "5m").replace("$instance", ".*") for expression in EXPRESSIONS]
    rules = [{"record": f"dashboard:query:{number}", "expr": text} for number, text in enumerate(plain)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    result = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(EXPRESSIONS)} rules found" in result.stdout


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= generate.WIDTH
        columns = range(position["x"], position["x"] + position["w"])
        rows = range(position["y"], position["y"] + position["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_every_panel_has_a_title_a_source_and_a_unit() -> None:
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_phase_has_a_color_of_its_own() -> None:
    panel = next(panel for panel in PANELS if panel["title"] == "Wall time by phase")
    overrides = panel["fieldConfig"]["overrides"]
    colors = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"] for override in overrides
    }
    assert tuple(colors) == PHASES
    assert len(set(colors.values())) == len(PHASES)
