"""What may have changed when a run is continued, and what it says of it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.saves import end_saves_at_once
from trainer.cli import main
from trainer.job import checkpointing, training_state
from trainer.records import read_records, write_checkpoint

WriteConfig = Callable[..., Path]


def train(config: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(config), "--run", str(run), *overrides])


def trained(run: Path) -> list[int]:
    return [record["step"] for record in read_records(run / "steps.jsonl")]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_records(run / "events.jsonl") if event["event"] == kind]


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    """As many rows as the small data, and other ones."""
    assert main(["sample", str(tmp_path / "log"), "--rows", "12000", "--seed", "2"]) == 0
    assert main(["preprocess", str(tmp_path / "log"), "--out", str(tmp_path / "other")]) == 0
    return tmp_path / "other"


def test_rows_may_move_but_not_change(
    write_config: WriteConfig,
    tmp_path: Path,
    small_data: Path,
    other_data: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, run = write_config("[budget]\nsteps = 2"), tmp_path / "run"
    assert train(config, run) == 0
    shutil.copytree(small_data, tmp_path / "moved")
    assert train(config, run, "--budget.steps", "3", "--data.path", str(tmp_path / "moved")) == 0
    capfd.readouterr()
    assert train(config, run, "--budget.steps", "4", "--data.path", str(other_data)) == 2
    assert "other rows" in capfd.readouterr().err
    assert trained(run) == [0, 1, 2]
    kept = tomllib.loads((run / "config.toml").read_text())
    assert kept["data"]["path"] == str(tmp_path / "moved"), "settings that were refused are not kept"
    [failed] = events(run, "failed")
    assert "other rows" in failed["message"]


def test_other_rows_can_be_evaluated(
    write_config: WriteConfig, tmp_path: Path, other_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config("[budget]\nsteps = 2", data="batch_rows = 4000"), tmp_path / "run"
    assert train(config, run) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--split", "test", "--rows", "100", "--data", str(other_data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["split"], found["rows"]) == (2, "test", 100)


def test_a_budget_may_grow_with_a_warning(
    write_config: WriteConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config("[budget]\nsteps = 2"), tmp_path / "run"
    assert train(config, run) == 0
    capfd.readouterr()
    assert train(config, run, "--budget.steps", "4", "--data.prefetch_batches", "1") == 0
    assert "budget was 2 steps and is 4" in capfd.readouterr().err
    assert trained(run) == [0, 1, 2, 3]
    assert [record["step"] for record in read_records(run / "evals.jsonl")] == [2, 2, 4, 4]


def test_a_checkpoint_of_another_machine_s_devices_is_gone_on_from_with_a_warning(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run, state = write_config("[budget]\nsteps = 2"), tmp_path / "run", training_state.random_state
    device = torch.zeros(16, dtype=torch.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(training_state, "random_state", lambda: {**state(), "cuda": [device] * 99})
        assert train(config, run) == 0
    capfd.readouterr()
    assert train(config, run, "--budget.steps", "4") == 0
    assert "random state of 99 CUDA devices" in capfd.readouterr().err
    assert train(config, run, "--budget.steps", "6") == 0
    assert sum("99 CUDA devices" in event["message"] for event in events(run, "warning")) == 1


def test_a_reached_target_is_not_trained_past(
    write_config: WriteConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config("[budget]\nsteps = 9\ntarget_loss = 9.0\n[eval]\nevery_steps = 2"), tmp_path / "run"
    assert train(config, run) == 0
    assert train(config, run) == 0
    assert "target is reached at step 2 already" in capfd.readouterr().err
    assert trained(run) == [0, 1]


DIVERGING = """
[budget]
steps = 60
[optimizer]
name = "sgd"
lr = 1e8
[schedule]
name = "constant"
[checkpoint]
every_steps = 1
"""


def test_divergence_exits_with_3_and_leaves_no_checkpoint_without_numbers(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config, run = write_config(DIVERGING), tmp_path / "run"
    assert train(config, run) == 3
    steps = list(read_records(run / "steps.jsonl"))
    assert [record["loss"] for record in steps[-5:]] == [None] * 5
    assert [event["reason"] for event in events(run, "stop")] == ["diverged"]
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert int(newest.removeprefix("step-")) <= len(steps) - 5


def test_a_run_that_never_saved_may_start_over_with_other_settings(write_config: WriteConfig, tmp_path: Path) -> None:
    config, run = write_config(DIVERGING.replace("every_steps = 1", "")), tmp_path / "run"
    assert train(config, run) == 3
    assert train(config, run, "--optimizer.lr", "0.01", "--budget.steps", "2") == 0
    assert trained(run) == [0, 1]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Saving fails at the steps that the test puts in, and each save ends before the next step."""
    steps: list[int] = []
    write = write_checkpoint

    def write_or_fail(run: Path, step: int, *content: Any, **values: Any) -> Path:
        if step in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run))
        return write(run, step, *content, **values)

    monkeypatch.setattr(training_state, "write_checkpoint", write_or_fail)
    monkeypatch.setattr(checkpointing, "write_checkpoint", write_or_fail)
    monkeypatch.setattr(checkpointing, "RETRY_SECONDS", 0.0)
    end_saves_at_once(monkeypatch)
    return steps


def test_a_checkpoint_that_fails_does_not_end_the_run(
    write_config: WriteConfig, tmp_path: Path, full_disk: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config("[budget]\nsteps = 6\n[checkpoint]\nevery_steps = 2"), tmp_path / "run"
    full_disk[:] = [2]
    assert train(config, run) == 0
    failures = capfd.readouterr().err.count("no checkpoint at step 2")  # more than one where it fails before step 3
    assert failures
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "step-00000003",  # at once in place of the one that failed
        "step-00000004",
        "step-00000006",
    }
    text = (run / "metrics.prom").read_text()
    assert re.findall(r"^alphastream_checkpoint_failures_total (.*)$", text, re.M) == [f"{failures}.0"]


def test_the_last_checkpoint_must_not_fail(
    write_config: WriteConfig, tmp_path: Path, full_disk: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config("[budget]\nsteps = 3\n[checkpoint]\nfinal_retry_seconds = 0")
    run = tmp_path / "run"
    full_disk[:] = [3]
    assert train(config, run) == 74
    said = capfd.readouterr().err.splitlines()
    assert re.search(r"of step 3, could not be written \(No space left.*; free .*, then run the same command", said[-1])
    full_disk.clear()
    assert train(config, run) == 0
    assert trained(run) == [0, 1, 2]


def test_rows_that_are_skipped_are_counted(
    write_config: WriteConfig, tmp_path: Path, small_log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "damaged"
    assert main(["preprocess", str(small_log), "--out", str(data), "--rows-per-shard", "3000"]) == 0
    shard = sorted((data / "train").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    config, run = write_config("[budget]\nepochs = 1", data="batch_rows = 500"), tmp_path / "run"
    assert train(config, run, "--data.path", str(data)) == 74
    assert shard.name in capfd.readouterr().err
    assert train(config, run, "--data.path", str(data), "--data.damaged", "skip") == 0
    said = capfd.readouterr().err
    assert said.count("damaged rows are left out") == 1
    assert "3,000 damaged rows left out" in said
    assert sum(record["rows"] for record in read_records(run / "steps.jsonl")) == 9600 - 3000
    assert "alphastream_rejected_rows_total 3000.0" in (run / "metrics.prom").read_text()
