"""What a study reports is what its runs recorded: losses, outcomes, best cells, differences, correlations."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from tests.synthetic_run import step_records, write_lines
from tests.synthetic_study import STEPS, write_result
from trainer.study.comparison import correlations, pearson
from trainer.study.definition import RESOLVED, Study, StudyRun, is_study, read_study
from trainer.study.report import sentences, write_study_report
from trainer.study.results import RunOutcome, cells, collect

STUDY = """
[data]
path = "DATA"
[study]
question = "Which?"
seeds = [0, 1]
within_steps = [40]
within_seconds = [1.0]
[[study.arm]]
name = "base"
set = { "optimizer.lr" = [1e-3, 1e-2, 1e-1] }
[[study.arm]]
name = "hold"
[study.arm.set]
"stepsize.policy" = "median_hold"
"stepsize.start" = 12
"stepsize.interval" = [10, 20]
"stepsize.count" = [3, 5]
"""


def loss_of(run: StudyRun) -> float:
    """Lowest at a rate of 1e-2; in `hold` it grows with the interval alone; the second seed is a little worse."""
    if run.arm == "base":
        loss = 0.5 + 0.01 * abs(math.log10(run.values["optimizer.lr"] / 1e-2))
    else:
        loss = 0.49 + 0.001 * run.values["stepsize.interval"]
    return loss + 0.002 * run.seed * (1 if run.arm == "base" else 2)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "my.toml").write_text(STUDY, encoding="utf-8")
    return read_study(tmp_path / "my.toml").unfold()


@pytest.fixture
def out(study: Study, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for run in study.runs:
        write_result(folder, run, loss_of(run), worse_end=0.003)
    (folder / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    return folder


def rows(out: Path, table: str) -> list[dict[str, str]]:
    with (out / f"{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_result_is_what_the_run_recorded(study: Study, out: Path) -> None:
    result = collect(study, out)["base/lr=0.001-seed1"]
    assert result.outcome is RunOutcome.FINISHED
    assert (result.steps, result.best_step) == (STEPS, 50)
    assert result.best_loss == pytest.approx(0.512)
    assert result.final_loss == pytest.approx(0.515)
    assert result.test_loss == pytest.approx(1.012)
    assert result.training_seconds == pytest.approx(1.8)
    assert result.within == {
        "best_loss_within_40_steps": pytest.approx(0.522),
        "steps_within_1_seconds": 33,
        "best_loss_within_1_seconds": pytest.approx(0.522),
    }


def test_rates_leave_the_warm_up_out(study: Study, out: Path) -> None:
    every = np.array([record["learning_rate"] for record in step_records(STEPS, peak=1e-3)])
    base = collect(study, out)["base/lr=0.001-seed0"]
    peak = int(every.argmax())
    assert peak == 2
    assert (base.rate.mean, base.rate_median) == pytest.approx((every[peak:].mean(), np.median(every[peak:])))
    assert (base.rate.low, base.rate.high, base.rate.sd) == pytest.approx(
        (every.min(), every.max(), every[peak:].std(ddof=1))
    )
    hold = collect(study, out)["hold/interval=10,count=3-seed0"]
    assert hold.rate.mean == pytest.approx(8 * every[12:].mean())


@pytest.mark.parametrize(
    ("reason", "loss", "outcome"),
    [
        ("budget", 0.5, RunOutcome.FINISHED),
        ("target", 0.5, RunOutcome.FINISHED),
        ("diverged", 0.5, RunOutcome.DIVERGED),
        ("budget", math.nan, RunOutcome.DIVERGED),
        ("interrupted", 0.5, RunOutcome.UNFINISHED),
        (None, 0.5, RunOutcome.UNFINISHED),
    ],
)
def test_outcomes(study: Study, tmp_path: Path, reason: str | None, loss: float, outcome: RunOutcome) -> None:
    run = study.runs[0]
    assert collect(study, tmp_path)[run.name].outcome is RunOutcome.WAITING
    write_result(tmp_path, run, loss, reason=reason)
    assert collect(study, tmp_path)[run.name].outcome is outcome


def test_a_stop_that_steps_went_beyond_is_not_the_end(study: Study, tmp_path: Path) -> None:
    run = study.runs[0]
    write_result(tmp_path, run, 0.5)
    write_lines(tmp_path / run.path / "events.jsonl", [{"event": "stop", "step": STEPS - 1, "reason": "budget"}])
    assert collect(study, tmp_path)[run.name].outcome is RunOutcome.UNFINISHED


def test_cells_sum_up_their_seeds_and_are_compared_seed_by_seed(study: Study, out: Path) -> None:
    found = {(cell.arm, cell.cell): cell for cell in cells(study, list(collect(study, out).values()))}
    best = found["base", "lr=0.01"]
    assert best.best_loss.mean == pytest.approx(0.501)
    assert best.best_loss.sd == pytest.approx(0.002 / math.sqrt(2))
    assert (best.best_loss.low, best.best_loss.high) == pytest.approx((0.5, 0.502))
    assert [key for key, cell in found.items() if cell.best_of_arm] == [
        ("base", "lr=0.01"),
        ("hold", "interval=10,count=3"),
    ]
    assert best.difference.count == 0
    hold = found["hold", "interval=20,count=5"]
    assert hold.difference.mean == pytest.approx(0.011)  # 0.510 − 0.500 and 0.514 − 0.502
    assert hold.difference.error == pytest.approx(0.002 / math.sqrt(2) / math.sqrt(2))


def test_a_cell_that_diverged_once_is_not_the_best(study: Study, tmp_path: Path) -> None:
    for run in study.runs:
        champion = run.cell == "lr=0.01"
        write_result(tmp_path, run, loss_of(run), reason="diverged" if champion and run.seed else "budget")
    found = cells(study, list(collect(study, tmp_path).values()))
    assert next(cell.cell for cell in found if cell.best_of_arm) != "lr=0.01"
    assert next(cell for cell in found if cell.cell == "lr=0.01").best_loss.count == 1


def test_correlations_are_pearsons(study: Study, out: Path) -> None:
    found = {(one.arm, one.number): one for one in correlations(study, list(collect(study, out).values()))}
    assert found.keys() == {("hold", "stepsize.interval"), ("hold", "stepsize.count")}
    runs = [run for run in study.runs if run.arm == "hold"]
    expected = stats.pearsonr([run.values["stepsize.interval"] for run in runs], [loss_of(run) for run in runs])
    interval = found["hold", "stepsize.interval"]
    assert (interval.runs, interval.r, interval.p) == (8, pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert found["hold", "stepsize.count"].p == pytest.approx(1.0)


@pytest.mark.parametrize("count", [3, 4, 9, 60, 3000])
@pytest.mark.parametrize("effect", [0.0, 0.3, 3.0])
def test_pearson_against_scipy(count: int, effect: float) -> None:
    rng = np.random.default_rng(count)
    x = rng.normal(size=count)
    y = effect * x + rng.normal(size=count)
    assert pearson(x, y) == pytest.approx(tuple(stats.pearsonr(x, y)), rel=1e-9, abs=1e-12)


def test_pearson_of_what_does_not_vary_is_none() -> None:
    assert pearson(np.ones(5), np.arange(5.0)) is None
    assert pearson(np.arange(2.0), np.arange(2.0)) is None


def test_tables_and_page(study: Study, out: Path) -> None:
    assert is_study(out)
    page = write_study_report(out)
    text = page.read_text(encoding="utf-8")
    results = rows(out, "results")
    assert [row["run"] for row in results] == [str(run.path) for run in study.runs]
    assert [float(row["best_validation_loss"]) for row in results] == pytest.approx(
        [loss_of(run) for run in study.runs]
    )
    assert results[0]["optimizer.lr"] == "0.001"
    assert {row["stepsize.interval"] for row in results if row["arm"] == "hold"} == {"10", "20"}
    summary = {
        (row["optimizer.lr"], row["stepsize.interval"], row["stepsize.count"]): row for row in rows(out, "summary")
    }
    assert float(summary["0.001", "100", "10"]["less_best_of_base"]) == pytest.approx(0.01)
    assert summary["0.01", "100", "10"]["best_of_arm"] == "yes"
    for sentence in sentences(study, list(collect(study, out).values())):
        assert sentence in text
    pictures = re.findall(r'img src="([^"]+)"', text)
    assert pictures == [
        "learning_rate.png",
        "heat_hold.png",
        "heat_hold_within_40_steps.png",
        "cells.png",
        "progress.png",
        "rates.png",
    ]
    for picture in pictures:
        pixels = imread(out / picture)
        assert 0.005 < (pixels[..., :3] < 0.9).any(axis=2).mean() < 0.9


def test_sentences_say_what_the_runs_came_to(study: Study, out: Path) -> None:
    said = sentences(study, list(collect(study, out).values()))
    assert said[0] == "Which?"
    assert said[1] == "14 of 14 runs finished, in 25.2 s of training."
    assert said[2] == (
        "base: best validation loss 0.50100 ± 0.00141 (standard deviation over 2 seeds) with lr=0.01; "
        "its cells range from 0.50100 to 0.51100."
    )
    assert "Against the best of base: +0.00100 ± 0.00100 (standard error); at worst +0.01100 ± 0.00100" in said[3]


def test_lines_that_are_left_out_are_said(study: Study, out: Path) -> None:
    run = study.runs[1]
    with (out / run.path / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 60, "loss"\n{"step"')
    said = sentences(study, list(collect(study, out).values()))
    assert said[2] == f"2 lines of the records could not be read and were left out, the first of them in {run.path}."


def test_a_study_in_progress_is_reported_as_far_as_it_is(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_result(out, study.runs[0], 0.5)
    write_result(out, study.runs[1], 0.5, reason=None)
    write_result(out, study.runs[2], math.nan)
    (out / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    write_study_report(out)
    assert [row["outcome"] for row in rows(out, "results")][:4] == ["finished", "unfinished", "diverged", "waiting"]
    assert "1 of 14 runs finished" in sentences(study, list(collect(study, out).values()))[1]


def test_a_study_without_a_result_still_has_a_page(study: Study, tmp_path: Path) -> None:
    (tmp_path / RESOLVED).write_text(replace(study).to_toml(), encoding="utf-8")
    assert "0 of 14 runs finished" in write_study_report(tmp_path).read_text(encoding="utf-8")


def test_a_study_of_a_single_run_draws_no_picture_of_one_dot(tmp_path: Path) -> None:
    text = """
    [data]
    path = "DATA"
    [[study.arm]]
    name = "base"
    set = { "optimizer.lr" = [1e-3] }
    """
    (tmp_path / "one.toml").write_text(text, encoding="utf-8")
    study = read_study(tmp_path / "one.toml").unfold()
    [run] = study.runs
    write_result(tmp_path / "out", run, 0.5)
    (tmp_path / "out" / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    page = write_study_report(tmp_path / "out").read_text(encoding="utf-8")
    assert re.findall(r'img src="([^"]+)"', page) == ["progress.png", "rates.png"]
