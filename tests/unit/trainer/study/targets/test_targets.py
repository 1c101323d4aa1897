"""Targets are numbers or a baseline's own losses; a run reaches one at the first evaluation that says so in time."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic_run import step_records, write_lines
from trainer.config import ConfigError
from trainer.study.definition import RESOLVED, Study, StudyRun, read_study
from trainer.study.report import write_study_report
from trainer.study.results import RunOutcome, collect
from trainer.study.targets.arrivals import Target, arrival, curves_of, targets_of
from trainer.study.targets.config import PublishedConfig, TargetsConfig
from trainer.study.targets.pages import TargetPages

HEAD = """
[data]
path = "DATA"
batch_rows = 100
[budget]
steps = 60
seconds = 5.0
[study]
seeds = [0, 1, 2]
"""
ARMS = """
[[study.arm]]
name = "tuned"
set = { "optimizer.lr" = [1e-3, 1e-2] }
[[study.arm]]
name = "free"
"""
NUMBERS = "[study.targets]\nvalidation = 0.5\ntest = 0.6\n"
BASELINE = '[study.targets]\nbaseline = "tuned"\n'
PUBLISHED = """
[[study.targets.published]]
arm = "tuned"
machine = "8 × V100"
seconds = 200
rows_per_second = [100, 150]
batch_rows = 50
[[study.targets.published]]
arm = "free"
machine = "8 × V100"
seconds = 150
[[study.targets.published]]
arm = "free"
machine = "4 × A100"
seconds = 7
"""
STEPS = 60


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Study]:
    def make(targets: str) -> Study:
        (tmp_path / "my.toml").write_text(HEAD + targets + ARMS, encoding="utf-8")
        return read_study(tmp_path / "my.toml").unfold()

    return make


def write_run(
    out: Path,
    run: StudyRun,
    losses: dict[int, float],
    *,
    offset: float = 0.1,
    second: float = 0.1,
    reason: str | None = "budget",
) -> None:
    """A run with these validation losses after so many steps, test losses `offset` above, `second` seconds a step."""
    folder = out / run.path
    folder.mkdir(parents=True, exist_ok=True)
    steps = step_records(STEPS)
    for record in steps:
        record["scheduled_rate"], record["seconds"] = record["learning_rate"], second
    write_lines(folder / "steps.jsonl", steps)
    lines = [
        {"step": step, "split": split, "loss": loss + above, "training_seconds": second * step, "seconds": 9.0}
        for step, loss in losses.items()
        for split, above in (("validation", 0.0), ("test", offset))
    ]
    write_lines(folder / "evals.jsonl", lines)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    if reason is not None:
        events.append({"event": "stop", "step": STEPS, "reason": reason})
    write_lines(folder / "events.jsonl", events)


def write_all(study: Study, out: Path) -> None:
    """tuned reaches .49 + .001 · seed after 30 steps with its second rate; free does so after 20, but for one seed."""
    for run in study.runs:
        last = 0.49 + 0.001 * run.seed
        if run.arm == "tuned":
            write_run(out, run, {10: 0.7, 30: last if run.values["optimizer.lr"] == 1e-2 else 0.55, 60: 0.58})
        else:
            write_run(out, run, {10: 0.7, 20: 0.489 if run.seed != 1 else 0.52, 60: 0.53}, second=0.05)
    out.joinpath(RESOLVED).write_text(study.to_toml(), encoding="utf-8")


def rows(out: Path, table: str) -> list[dict[str, str]]:
    with (out / f"{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_number_is_reached_below_it_and_at_the_first_such_evaluation(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS)
    run = study.runs[0]
    write_run(tmp_path, run, {10: 0.7, 20: 0.5, 30: 0.499, 40: 0.51, 50: 0.4}, offset=0.15)
    result = collect(study, tmp_path)[run.name]
    curves = curves_of(tmp_path / run.path)
    validation, test = targets_of(study, [result])
    assert (validation, test) == (Target(split="validation", loss=0.5), Target(split="test", loss=0.6))
    found = arrival(result, validation, curves["validation"])
    assert (found.steps, found.seconds, found.loss) == (30, pytest.approx(3.0), 0.499)
    found = arrival(result, test, curves["test"])  # a target of its own, later
    assert (found.steps, found.seconds, found.loss) == (50, pytest.approx(5.0), pytest.approx(0.55))


def test_time_is_training_time_and_what_comes_after_the_budget_does_not_count(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS)
    run = study.runs[0]
    write_run(tmp_path, run, {10: 0.7, 50: 0.51, 51: 0.4})
    result = collect(study, tmp_path)[run.name]
    found = arrival(result, targets_of(study, [result])[0], curves_of(tmp_path / run.path)["validation"])
    assert not found.arrived
    assert (found.steps, found.seconds) == (math.inf, math.inf)
    write_run(tmp_path, run, {10: 0.7, 50: 0.51, 51: 0.4}, second=5.0 / 51)
    found = arrival(result, targets_of(study, [result])[0], curves_of(tmp_path / run.path)["validation"])
    assert (found.steps, found.seconds) == (51, pytest.approx(5.0))


def test_a_loss_that_is_not_finite_reaches_nothing(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS)
    run = study.runs[0]
    write_run(tmp_path, run, {10: math.nan, 20: 0.7}, reason="diverged")
    result = collect(study, tmp_path)[run.name]
    found = arrival(result, targets_of(study, [result])[0], curves_of(tmp_path / run.path)["validation"])
    assert not found.arrived
    assert found.outcome is RunOutcome.DIVERGED


def test_an_evaluation_made_again_after_a_resume_counts_as_the_latest(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS)
    run = study.runs[0]
    write_run(tmp_path, run, {10: 0.7, 20: 0.4, 30: 0.41})
    path = tmp_path / run.path / "evals.jsonl"
    again = '{"step": 20, "split": "validation", "loss": 0.45, "training_seconds": 2.5, "seconds": 1.0}\n'
    path.write_text(path.read_text(encoding="utf-8") + again, encoding="utf-8")
    curve = curves_of(tmp_path / run.path)["validation"]
    assert (curve.steps.tolist(), curve.losses.tolist()) == ([10, 20, 30], [0.7, 0.45, 0.41])
    assert curve.seconds[1] == 2.5


def test_a_baseline_sets_targets_that_at_least_half_of_its_runs_reach(made: Any, tmp_path: Path) -> None:
    study = made(BASELINE)
    write_all(study, tmp_path)
    results = list(collect(study, tmp_path).values())
    validation, test = targets_of(study, results)
    assert (validation.loss, validation.inclusive, validation.final) == (pytest.approx(0.491), True, True)
    assert test.loss == pytest.approx(0.591)
    pages = TargetPages.of(study, tmp_path, results, colors={})
    reached = {
        (one.cell.arm, one.cell.cell, one.target.split): (one.arrived, one.steps, one.seconds) for one in pages.arrivals
    }
    assert reached["tuned", "lr=0.01", "validation"] == (2, 30, pytest.approx(3.0))
    assert reached["tuned", "lr=0.001", "validation"] == (0, math.inf, math.inf)
    assert reached["free", "", "validation"] == (2, 20, pytest.approx(1.0))
    assert reached["free", "", "test"][0] == 2


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5])
def test_at_least_half_of_the_baseline_reach_its_own_target(tmp_path: Path, seeds: int) -> None:
    head = HEAD.replace("[0, 1, 2]", str(list(range(seeds))))
    (tmp_path / "my.toml").write_text(head + BASELINE + ARMS, encoding="utf-8")
    study = read_study(tmp_path / "my.toml").unfold()
    write_all(study, tmp_path)
    results = list(collect(study, tmp_path).values())
    pages = TargetPages.of(study, tmp_path, results, colors={})
    [mine] = [one for one in pages.arrivals if one.cell.cell == "lr=0.01" and one.target.split == "validation"]
    assert mine.arrived == seeds // 2 + 1


def test_a_baseline_in_progress_sets_preliminary_targets_and_none_before_its_first_run(
    made: Any, tmp_path: Path
) -> None:
    study = made(BASELINE)
    results = list(collect(study, tmp_path).values())
    pages = TargetPages.of(study, tmp_path, results, colors={})
    assert list(pages.sentences()) == ["No targets yet: they are the losses of tuned, no cell of which has finished."]
    assert (pages.tables(), list(pages.figures())) == ([], [])
    write_run(tmp_path, study.runs[0], {30: 0.5, 60: 0.48})
    results = list(collect(study, tmp_path).values())
    assert [target.final for target in targets_of(study, results)] == [False, False]
    pages = TargetPages.of(study, tmp_path, results, colors={})
    assert "which may change while it runs" in next(pages.sentences())


def test_the_report_has_the_targets_in_words_tables_and_a_picture(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS + PUBLISHED)
    write_all(study, tmp_path)
    page = write_study_report(tmp_path).read_text(encoding="utf-8")
    assert "To be reached: validation loss 0.500000 and test loss 0.600000." in page
    assert (
        "free: validation target reached by 2 of 3 runs, the middle one after 20 steps and 1.0 s of training; "
        "test target reached by 2 of 3 runs, the middle one after 20 steps and 1.0 s of training." in page
    )
    assert (tmp_path / "targets.png").is_file()
    assert "targets.png" in page

    cells = {(row["arm"], row["cell"], row["split"]): row for row in rows(tmp_path, "targets")}
    assert len(cells) == 6
    free = cells["free", "", "validation"]
    assert (free["runs"], free["reached"], free["median_steps"]) == ("3", "2", "20")
    assert float(free["steps_over_tuned"]) == pytest.approx(20 / 30)
    assert float(free["seconds_over_tuned"]) == pytest.approx(1 / 3)
    assert cells["tuned", "lr=0.001", "test"]["median_steps"] == "inf"

    runs = {(row["arm"], row["cell"], row["seed"], row["split"]): row for row in rows(tmp_path, "arrivals")}
    assert len(runs) == 18
    one = runs["free", "", "1", "validation"]
    assert (one["steps"], one["loss"], one["best_loss"]) == ("inf", "", "0.52")
    assert float(runs["tuned", "lr=0.01", "0", "test"]["share_of_budget"]) == pytest.approx(3.0 / 5.0)

    published = rows(tmp_path, "published")
    assert [(row["arm"], row["where"], row["split"], row["steps"]) for row in published] == [
        ("tuned", "8 × V100", "validation", "400 to 600"),
        ("tuned", "here", "validation", "30"),
        ("tuned", "here", "test", "30"),
        ("free", "8 × V100", "validation", ""),
        ("free", "4 × A100", "validation", ""),
        ("free", "here", "validation", "20"),
        ("free", "here", "test", "20"),
    ]
    assert published[3]["seconds_over_first_arm"] == "0.75"
    assert published[4]["seconds_over_first_arm"] == "1"  # the first there
    assert float(published[5]["seconds_over_first_arm"]) == pytest.approx(1 / 3)
    assert float(published[5]["rows_per_second"]) == pytest.approx(100 / 0.05)


def test_an_arm_that_nobody_published_stands_beside_those_that_were(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS + "[[" + PUBLISHED.split("[[")[1])
    write_all(study, tmp_path)
    pages = TargetPages.of(study, tmp_path, list(collect(study, tmp_path).values()), colors={})
    [published] = [table for table in pages.tables() if table.stem == "published"]
    assert [row[:2] for row in published.rows] == [
        ("tuned", "8 × V100"),
        ("tuned", "here"),
        ("tuned", "here"),
        ("free", "here"),
        ("free", "here"),
    ]


def test_one_run_is_said_to_reach_a_target_or_not(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(HEAD.replace("[0, 1, 2]", "[1]") + NUMBERS + ARMS, encoding="utf-8")
    study = read_study(tmp_path / "my.toml").unfold()
    write_all(study, tmp_path)
    pages = TargetPages.of(study, tmp_path, list(collect(study, tmp_path).values()), colors={})
    assert list(pages.sentences())[1:] == [
        "tuned lr=0.01: validation target reached after 30 steps and 3.0 s of training; "
        "test target reached after 30 steps and 3.0 s of training.",
        "free: validation target not reached; test target not reached.",
    ]


def test_a_study_without_targets_says_nothing_of_them(made: Any, tmp_path: Path) -> None:
    study = made("")
    write_all(study, tmp_path)
    pages = TargetPages.of(study, tmp_path, list(collect(study, tmp_path).values()), colors={})
    assert (list(pages.sentences()), pages.tables(), list(pages.figures())) == ([], [], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[study.targets]\n", "needs either the losses to reach"),
        ('[study.targets]\nbaseline = "tuned"\ntest = 0.5\n', "needs either the losses to reach"),
        ('[study.targets]\nbaseline = "tune"\n', "baseline names arm 'tune'; the study has tuned, free"),
        ("[study.targets]\nvalidation = -1\n", "study.targets.validation is -1"),
        ("[study.targets]\nvalidaton = 0.5\n", "did you mean 'study.targets.validation'"),
        (NUMBERS + PUBLISHED.replace("machine", "machin", 1), "did you mean 'study.targets.published.machine'"),
        (NUMBERS + PUBLISHED.replace('"free"', '"fre"', 1), "names arm 'fre'"),
        (NUMBERS + PUBLISHED.replace("[100, 150]", "[150, 100]"), "rows_per_second is"),
        (NUMBERS + PUBLISHED.replace("200", "0"), "seconds is 0"),
        (NUMBERS + '[eval]\nsplits = ["validation"]\n', "eval.splits leaves out test"),
    ],
)
def test_what_makes_no_sense_is_refused(made: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(text)


def test_the_study_as_it_is_run_keeps_its_targets(made: Any, tmp_path: Path) -> None:
    study = made(NUMBERS + PUBLISHED)
    (tmp_path / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    assert read_study(tmp_path / RESOLVED).unfold().settings == study.settings


def test_the_shipped_study_is_algoperfs() -> None:
    file = read_study("algoperf")
    base, targets = file.base, file.settings.targets
    assert (base.data.batch_rows, base.budget.steps, base.eval.every_seconds) == (262_144, 10_666, 120)
    assert base.budget.seconds == 3 * 7703
    assert base.budget.target_loss is None
    assert base.optimizer.table == "dense"  # what evaluations would bring up to date is not timed
    assert isinstance(targets, TargetsConfig)
    assert (targets.validation, targets.test) == (0.123735, 0.126041)
    published = {(one.arm, one.machine): one.seconds for one in targets.published}
    assert published == {
        ("nadamw", "8 × V100"): 5794,
        ("schedule-free", "8 × V100"): 5764,
        ("nadamw", "4 × A100"): 8206,
        ("schedule-free", "4 × A100"): 7481,
    }


def test_published_steps_follow_from_rows_per_second() -> None:
    one = PublishedConfig(arm="a", machine="m", seconds=100.0, rows_per_second=(10.0, 20.0), batch_rows=5)
    assert one.steps == (200.0, 400.0)
    assert PublishedConfig(arm="a", machine="m", seconds=100.0, rows_per_second=(10.0, 20.0)).steps is None
