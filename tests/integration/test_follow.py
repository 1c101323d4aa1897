"""A log that grows: generations that come while a run trains, waits or is dead are trained on as if always there."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forked_commands import ForkedCommands
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records

SETTINGS = """
[schedule]
name = "constant"
[stepsize]
policy = "auto"
interval = 10
count = 4
[eval]
every_steps = 40
rows = 200
progressive_rows = 700
[checkpoint]
every_steps = 17
"""
FOLLOW = ("--data.follow", "--data.follow_poll_seconds", "0.05")
GENERATIONS = 6


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A log of six days, of which one is shorter than a pair of batches."""
    folder = tmp_path_factory.mktemp("days")
    assert main(["sample", str(folder), "--rows", "9000", "--days", str(GENERATIONS), "--seed", "4"]) == 0
    found = sorted(path for path in folder.iterdir() if path.name.startswith("day"))
    lines = found[3].read_bytes().splitlines(keepends=True)
    found[3].write_bytes(b"".join(lines[:45]))
    return found


@pytest.fixture(scope="module")
def complete(days: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all its generations."""
    data = tmp_path_factory.mktemp("complete") / "data"
    for day in days:
        append(day, data)
    return data


def append(day: Path, data: Path) -> None:
    further = ["--append"] if data.exists() else []
    assert main(["preprocess", str(day), "--out", str(data), *further]) == 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"[data]\nbatch_rows = 64\n[model]\ntable_rows = 2048\n[metrics]\nport = -1\n{SETTINGS}")
    return path


def training(config: Path, run: Path, data: Path, *further: str) -> list[str]:
    return ["train", str(config), "--run", str(run), "--data.path", str(data), *FOLLOW, *further]


def steps_of(run: Path) -> int:
    return sum(1 for _ in read_records(run / "steps.jsonl"))


def waits(run: Path) -> int:
    return sum(1 for record in read_records(run / "events.jsonl") if record["event"] == "waiting")


def evaluations(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "training_seconds")
    return [{key: record[key] for key in record if key not in timed} for record in read_records(run / "evals.jsonl")]


def assert_same(run: Path, other: Path) -> None:
    tensors, steps, estimates = lasting(run)
    other_tensors, other_steps, other_estimates = lasting(other)
    assert steps == other_steps
    assert estimates == other_estimates
    assert evaluations(run) == evaluations(other)
    assert same_bits(tensors, other_tensors)


def test_generations_that_come_at_any_time_change_nothing(
    config: Path, days: list[Path], complete: Path, tmp_path: Path, forks: ForkedCommands
) -> None:
    whole, grown, data = tmp_path / "whole", tmp_path / "grown", tmp_path / "data"
    assert main(training(config, whole, complete, "--data.follow_idle_seconds", "0")) == 0
    assert sorted({step[1] for step in lasting(whole)[1]}) == list(range(GENERATIONS)), "each is trained on once"
    rows = sum(step[3] for step in lasting(whole)[1])

    append(days[0], data)
    process = forks.start(*training(config, grown, data))
    process.wait_until(lambda: steps_of(grown) > 0)
    append(days[1], data)  # while it trains, or waits already
    process.wait_until(lambda: waits(grown) > 0 and any(step[1] == 1 for step in lasting(grown)[1]))
    append(days[2], data)
    process.wait_until(lambda: waits(grown) >= 2 and steps_of(grown) > 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    append(days[3], data)  # while it is dead: two
    append(days[4], data)
    process = forks.start(*training(config, grown, data))
    before = steps_of(grown)
    process.wait_until(lambda: steps_of(grown) > before)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    append(days[5], data)
    assert main(training(config, grown, data, "--data.follow_idle_seconds", "0")) == 0

    assert sum(step[3] for step in lasting(grown)[1]) == rows
    assert_same(grown, whole)
    progressive = [record for record in evaluations(whole) if record["split"] == "progressive"]
    assert len(progressive) > rows // 800
    assert all(record["rows"] >= 700 and record["auc"] is not None for record in progressive)
    assert main(["report", str(whole)]) == 0


def test_a_run_that_does_not_follow_goes_on_with_what_it_began_with(
    config: Path, days: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, cut, data = tmp_path / "whole", tmp_path / "cut", tmp_path / "data"
    append(days[0], data)
    plain = ["train", str(config), "--data.path", str(data), "--run"]
    assert main([*plain, str(whole), "--budget.steps", "60"]) == 0
    assert main([*plain, str(cut), "--budget.steps", "20"]) == 0
    append(days[1], data)
    capfd.readouterr()
    assert main([*plain, str(cut), "--budget.steps", "60"]) == 0
    assert "2 generations, and this run goes on with the 1 that it began with" in capfd.readouterr().err
    # the budget changed, and with it when auto cools down: the rows are what must be the same
    assert [step[1:4] for step in lasting(cut)[1]] == [step[1:4] for step in lasting(whole)[1]]


def test_a_generation_that_is_another_is_named(
    config: Path, days: list[Path], complete: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    for day in days[:3]:
        append(day, data)
    assert main(training(config, run, data, "--data.follow_idle_seconds", "0")) == 0
    other = tmp_path / "other"
    for day in (days[0], days[4], days[2]):
        append(day, other)
    capfd.readouterr()
    assert main(training(config, run, other, "--data.follow_idle_seconds", "0")) == 2
    assert "other rows than data.path holds now in generation 1" in capfd.readouterr().err
    shutil.rmtree(other)
    append(days[0], other)
    assert main(training(config, run, other, "--data.follow_idle_seconds", "0")) == 2
    assert "1 of the 3 generations" in capfd.readouterr().err


@pytest.mark.parametrize(
    "refused",
    [
        (["--budget.epochs", "2"], "budget.epochs is 2"),
        (["--data.feed", "dali"], "data.follow = true is not for"),
        (["--schedule.name", "warmup_cosine"], "schedule.name = 'constant'"),
    ],
)
def test_what_a_log_without_end_cannot_have_is_refused(
    config: Path, complete: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: tuple[list[str], str]
) -> None:
    further, said = refused
    assert main(training(config, tmp_path / "run", complete, *further)) == 2
    assert said in capfd.readouterr().err


def test_auto_without_an_end_averages_its_weights(config: Path, complete: Path, tmp_path: Path) -> None:
    endless, ended = tmp_path / "endless", tmp_path / "ended"
    assert main(training(config, endless, complete, "--data.follow_idle_seconds", "0")) == 0
    assert 'average = "ema"' in (endless / "config.toml").read_text()
    assert main(training(config, ended, complete, "--budget.steps", "5")) == 0
    assert 'average = "none"' in (ended / "config.toml").read_text()
    rates = [step[5] for step in lasting(endless)[1]]
    assert min(rates[-20:]) > 0.1 * max(rates[-60:-20]), "no cool-down"
