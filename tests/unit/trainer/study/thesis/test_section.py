"""The reports of the published studies: every item of its list ticked or explained, its figures beside those here."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.synthetic_run import write_lines
from tests.synthetic_study import STEPS, estimate, write_result
from trainer.study.definition import RESOLVED, Study, read_study
from trainer.study.report import write_study_report
from trainer.study.scaling import scale_of
from trainer.study.thesis.published import OBSERVED


def small(name: str) -> Study:
    """The shipped study at 1/1422 of its steps, or its nearest that keeps the grid."""
    file = read_study(name).scaled(scale_of("1/250"), train_rows=109_713)
    return file.unfold(replace(file.base, data=replace(file.base.data, path="DATA")))


def rows(out: Path, table: str) -> list[dict[str, str]]:
    with (out / f"{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def report(study: Study, out: Path) -> str:
    out.mkdir(exist_ok=True)
    (out / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    return write_study_report(out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All of 60 steps measured, in windows of 4."""
    study, out = small("thesis-observe"), tmp_path_factory.mktemp("thesis") / "observed"
    [run] = study.runs
    folder = write_result(out, run, 0.5, worse_end=0.02, splits=("train", "validation", "test"))
    write_lines(folder / "alpha.jsonl", [estimate(step) for step in range(STEPS)])
    return out, report(study, out)


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """α* gets worse with N in steps, with I in seconds, and there slower with N; Schedule-Free lies in between."""
    study, out = small("thesis-apply"), tmp_path_factory.mktemp("thesis") / "applied"
    for run in study.runs:
        loss = {"schedule": 0.50, "schedule-free": 0.51}.get(run.arm.removesuffix("-seconds"), 0.52)
        if run.arm == "alpha":
            loss += 0.001 * run.config.stepsize.count
        if run.arm == "alpha-seconds":
            loss += 0.001 * run.config.stepsize.interval
        slower = 0.001 * run.config.stepsize.count if run.arm == "alpha-seconds" else 0.0
        write_result(out, run, loss, step_seconds=0.03 + slower)
    return out, report(study, out)


@pytest.mark.parametrize("name", ["observed", "applied"])
def test_every_item_is_there(name: str, request: pytest.FixtureRequest) -> None:
    out, page = request.getfixturevalue(name)
    items = rows(out, "published_list")
    assert len(items) >= 12
    for item in items:
        assert item["here"] == "✓" or item["table or figure"].startswith("alphastream study ")
        for stem in item["table or figure"].split(", ") if item["here"] == "✓" else ():
            assert re.search(rf'"{stem.removesuffix("_steps")}(_steps)?\.(png|csv)"', page), stem
    for picture in re.findall(r'img src="([^"]+)"', page):
        pixels = imread(out / picture)
        assert 0.005 < (pixels[..., :3] < 0.9).any(axis=2).mean() < 0.9, picture


@pytest.mark.parametrize("name", ["thesis-observe", "thesis-apply"])
def test_before_any_run_the_list_says_why_not(name: str, tmp_path: Path) -> None:
    page = report(small(name), tmp_path / "out")
    items = rows(tmp_path / "out", "published_list")
    assert all(item["here"].startswith("not yet: ") for item in items[:-3])
    assert "✓" not in page


def test_observed_figures_stand_beside_the_published(observed: tuple[Path, str]) -> None:
    out, _ = observed
    absolute = {row["figure"]: row for row in rows(out, "published_absolute")}
    [alpha] = rows(out, "alpha")
    for figure, key in (("mean", "mean"), ("median", "median"), ("standard deviation", "sd"), ("range", "range")):
        assert absolute[figure]["unbiased"] == alpha[f"unbiased_absolute_{key}"]
        assert absolute[figure]["biased"] == alpha[f"biased_absolute_{key}"]
    assert float(absolute["mean"]["published"]) == OBSERVED["unbiased_absolute_mean"]
    assert float(absolute["mean"]["published "]) == OBSERVED["biased_absolute_mean"]
    peak = 2.19e-4 * 250
    over = float(absolute["mean over the schedule's peak"]["unbiased"])
    assert over == pytest.approx(float(alpha["unbiased_absolute_mean"]) / peak)
    assert absolute["estimates"]["unbiased"] == str(STEPS - 1)  # the first is left out
    bias = {row["figure"]: row for row in rows(out, "published_bias")}
    slope = bias["mean of hybrid − biased, the slope's share"]
    assert float(slope["here"]) == pytest.approx(float(alpha["hybrid_less_biased"]))
    assert (slope["published"], slope["sign"]) == ("-1692.29", "as published")
    assert bias["mean cosine of d2 and g2"]["sign"] == "as published"
    losses = {row["split"]: row for row in rows(out, "published_losses")}
    assert {split: float(row["lowest loss"]) for split, row in losses.items()} == pytest.approx(
        {"train": 0.4, "validation": 0.5, "test": 1.0}
    )
    assert float(losses["validation"]["last loss"]) == pytest.approx(0.52)
    assert losses["validation"]["published lowest"] == "0.124286"


def test_applied_losses_stand_beside_the_published(applied: tuple[Path, str]) -> None:
    out, page = applied
    best = {row["budget and rule"]: row for row in rows(out, "published_best")}
    assert len(best) == 4 * 3
    assert "What was scaled by 1/250" in page
    whole = {name: row for name, row in best.items() if name.startswith("341 steps")}
    [(name, mine)] = [(name, row) for name, row in whole.items() if "α*" in name]
    assert "count=1" in name
    assert float(mine["here"]) == pytest.approx(0.521)
    assert float(mine["less the schedule's"]) == pytest.approx(0.021)
    assert (mine["published"], mine["sign"]) == ("0.124372", "as published")
    assert float(mine["published "]) == pytest.approx(0.124372 - 0.124286)


def test_correlations_are_taken_within_every_budget(applied: tuple[Path, str]) -> None:
    out, _ = applied
    found = {(row["arm"], row["budget"], row["number"]): float(row["r"]) for row in rows(out, "correlations")}
    assert found["alpha", "341 steps", "stepsize.count"] == pytest.approx(1.0)
    assert found["alpha", "341 steps", "stepsize.interval"] == pytest.approx(0.0, abs=1e-9)
    assert found["alpha", "171 steps", "stepsize.count"] == pytest.approx(1.0)
    seconds = {budget for arm, budget, _ in found if arm == "alpha-seconds"}
    # the clock: 60 steps of 0.03 s are what the schedule's run took, and 61,624 s was 4.5 times that
    assert seconds == {"1.8 s", "8.0969 s"}
    assert found["alpha-seconds", "8.0969 s", "stepsize.interval"] == pytest.approx(1.0)
    assert abs(found["alpha-seconds", "1.8 s", "steps"]) < 1.0


def test_steps_within_the_budgets_in_seconds(applied: tuple[Path, str]) -> None:
    out, _ = applied
    steps = rows(out, "published_steps")
    assert steps[0]["cell"] == "schedule"
    assert steps[0]["steps within 8.0969 s"] == str(STEPS)
    assert steps[-1]["cell"].startswith("published")
    assert steps[-1]["steps within 1.8 s"] == "41885"


def test_no_table_of_a_page_is_wider_than_it(applied: tuple[Path, str], observed: tuple[Path, str]) -> None:
    for _, page in (applied, observed):
        for head in re.findall(r"<tr>(<th>.*?)</tr>", page):
            assert head.count("<th>") <= 8
