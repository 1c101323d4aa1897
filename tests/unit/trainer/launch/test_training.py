"""What `train --ranks` refuses, and when ranks are told to go back to an earlier checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.cli import main
from trainer.console import Console
from trainer.launch import training

CONFIG = '[data]\npath = "nowhere"\n[budget]\nsteps = 1\n'
Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    return lambda *more: main(["train", str(tmp_path / "config.toml"), "--run", str(tmp_path / "run"), *more])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ranks", "0"), "--ranks is 0; give 1 or more"),
        (("--ranks", "2", "--max-restarts", "-1"), "--max-restarts is -1; give 0 or more"),
        (("--ranks", "2", "--grace-seconds", "inf"), "--grace-seconds is inf; give 0 or more"),
        (("--ranks", "2", "--budget.step", "2"), "--budget.step is not an option"),
    ],
)
def test_wrong_options_are_one_line(
    train: Train, tmp_path: Path, options: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(*options) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_rank_starts_no_ranks(
    train: Train, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert train("--ranks", "2") == 2
    assert "this process is one of 4 ranks already" in capfd.readouterr().err


@pytest.mark.parametrize(("devices", "words"), [(1, "1 CUDA device;"), (2, "2 CUDA devices;")])
def test_more_ranks_than_devices_are_refused(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    devices: int,
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert train("--ranks", "3") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"--ranks is 3, but this machine has {words}" in line
    training.check_devices(devices)


def test_a_run_goes_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start after a loss repeats the wish only while it was not granted: later it would undo what was trained."""
    run, asked = tmp_path, ["--from-checkpoint", "20"]
    commands = list[list[str]]()

    def event(name: str) -> None:
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": name}) + "\n")

    def launched(command: Callable[[int], list[str]], *_: Any, **__: Any) -> int:
        commands.append(command(0))
        event("warning")
        commands.append(command(1))
        event("resume")
        commands.append(command(2))
        return 0

    event("start")
    monkeypatch.setattr(training, "launch", launched)
    training.launch_training(
        ["c.toml", *asked, "--ranks", "2"], run=run, ranks=2, max_restarts=3, grace_seconds=1.0, console=Console()
    )
    assert [command[-len(asked) :] == asked for command in commands] == [True, True, False]
    assert all("--ranks" not in command for command in commands)
