"""A study that is killed at random moments ends with the tables of one that was not; its clock is read once."""

from __future__ import annotations

import csv
import random
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.forked_commands import ForkedCommands
from trainer.cli import main

STUDY = """
[schedule]
steps = 30
[budget]
steps = 30
[eval]
every_steps = 6
rows = 256
splits = ["train", "validation", "test"]
[checkpoint]
every_steps = 7
[stepsize.measuring]
estimators = ["unbiased", "biased", "hybrid"]
diagnostics = "full"
[study]
within_steps = [15]
[[study.arm]]
name = "observe"
set = { stepsize.policy = "observe", stepsize.interval = 5, stepsize.count = 3, optimizer.lr = [0.001, 0.01] }
[[study.arm]]
name = "alpha"
[study.arm.set]
"stepsize.policy" = "median_hold"
"stepsize.start" = 4
"stepsize.interval" = [6, 12]
"stepsize.count" = [2, 3]
"""
RUNS, STEPS = 6, 30
TABLES = ("results", "summary", "correlations", "alpha")
OF_THE_CLOCK = {"training_seconds"}


def tables(out: Path) -> dict[str, list[dict[str, str]]]:
    """All tables, without what is time and not outcome."""
    found = {}
    for name in TABLES:
        with (out / f"{name}.csv").open(encoding="utf-8") as file:
            found[name] = [
                {key: value for key, value in row.items() if key not in OF_THE_CLOCK} for row in csv.DictReader(file)
            ]
    return found


def steps_recorded(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/*/steps.jsonl"))


def test_killed_at_random_moments_it_ends_with_the_same_tables(
    write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands
) -> None:
    study = write_config(STUDY)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["study", str(study), "--out", str(whole)]) == 0
    moments = sorted(random.SystemRandom().sample(range(1, RUNS * STEPS - STEPS), 2))
    for moment, jobs in zip(moments, ("1", "2"), strict=True):
        process = forks.start("study", study, "--out", killed, "--jobs", jobs)
        process.wait_until(lambda moment=moment: steps_recorded(killed) >= moment)
        process.kill()
        process.wait()
    while main(["study", str(study), "--out", str(killed)]) == 2:  # runs in processes of their own stop by themselves
        time.sleep(0.1)
    for name, rows in tables(whole).items():
        assert tables(killed)[name] == rows, f"{name}, killed at steps {moments}"


CLOCK = """
[study]
within_seconds = [1.0]
[study.clock]
arm = "schedule"
seconds = 1.0
[[study.arm]]
name = "late"
set = { budget.seconds = 3.0, eval.every_seconds = 1.0 }
[[study.arm]]
name = "schedule"
set = { budget.steps = 40 }
"""


def test_seconds_are_what_an_arm_takes_on_this_machine(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = write_config("[schedule]\nname = 'constant'\n[stepsize]\npolicy = 'none'\n[eval]\nrows = 64\n" + CLOCK)
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out), "--arms", "late"]) == 2
    assert "make it too: --arms schedule" in capfd.readouterr().err
    assert not list(out.glob("runs/late/*"))

    assert main(["study", str(study), "--out", str(out)]) == 0
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    taken = float(rows["schedule"]["training_seconds"])
    given = tomllib.loads((out / "runs/late/seed0/config.toml").read_text(encoding="utf-8"))
    assert given["budget"]["seconds"] == pytest.approx(3 * taken, rel=1e-5)
    assert given["eval"]["every_seconds"] == pytest.approx(taken, rel=1e-5)
    assert float(rows["late"]["training_seconds"]) >= given["budget"]["seconds"]
    [column] = [name for name in rows["late"] if name.startswith("steps_within_")]
    assert float(column.split("_")[2]) == pytest.approx(taken, rel=1e-5)
    assert 0 < int(rows["late"][column]) < int(rows["late"]["steps"])

    before = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
    assert main(["study", str(study), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.jsonl")} == before


def test_a_shipped_study_is_made_at_a_small_scale(
    small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["study", "thesis-observe", "--scale", "1/1000", "--out", str(out), "--data.path", str(small_data)]
    assert main([*command, "--eval.rows", "64", "--model.table_rows", "500"]) == 0
    said = capfd.readouterr().err
    assert "scaled by 1/1000:" in said
    assert "budget.steps 85,328 → 85\n" in said
    with (out / "published_list.csv").open(encoding="utf-8") as file:
        assert [row["here"] for row in csv.DictReader(file)][:-3] == ["✓"] * 10
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "What was scaled by 1/1000" in page
    config = tomllib.loads((out / "runs/observe/seed0/config.toml").read_text(encoding="utf-8"))
    assert config["model"]["table_rows"] == 500  # what is given by hand is not scaled
    assert main(["study", "learning-rate-free", "--scale", "1/2", "--out", str(out), "--data.path", "x"]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("alphastream: ")]
    assert "thesis-apply and thesis-observe do" in line
