"""Stopping a run and continuing it changes nothing: not one bit of weights, optimizer, rates or rows."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.forked_commands import ForkedCommands, slow_from
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records

SETTINGS = """
[budget]
steps = 120
[optimizer]
average = "ema"
[stepsize]
policy = "median_hold"
interval = 20
count = 4
start = 10
[eval]
rows = 256
"""


@pytest.mark.parametrize("stepsize", ["", "delay = 4"])
def test_sigterm_and_resume_are_exact(
    write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands, stepsize: str
) -> None:
    config = write_config(SETTINGS.replace("[eval]", f"{stepsize}\n[eval]"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", str(config), "--run", str(whole)]) == 0

    process = forks.start("train", config, "--run", cut, program=slow_from(50))
    process.wait_until(lambda: sum(1 for _ in read_records(cut / "steps.jsonl")) >= 50)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    stopped_at = sum(1 for _ in read_records(cut / "steps.jsonl"))
    assert 50 <= stopped_at < 120

    assert main(["train", str(config), "--run", str(cut)]) == 0
    tensors, steps, estimates = lasting(whole)
    resumed_tensors, resumed_steps, resumed_estimates = lasting(cut)
    assert len(steps) == 120
    assert resumed_steps == steps
    assert resumed_estimates == estimates
    assert same_bits(tensors, resumed_tensors)


def test_kill_and_resume_are_exact(write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands) -> None:
    """Nothing is saved at a kill: the run goes back to its newest checkpoint and repeats the steps since."""
    config = write_config(SETTINGS + "[checkpoint]\nevery_steps = 40\n")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", str(config), "--run", str(whole)]) == 0

    process = forks.start("train", config, "--run", cut)
    process.wait_until((cut / "checkpoints" / "step-00000040").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    assert main(["train", str(config), "--run", str(cut)]) == 0
    assert lasting(cut)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(cut)[0], lasting(whole)[0])


def test_kills_while_a_thread_writes_lose_steps_and_nothing_else(
    write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands
) -> None:
    """Saved at every step, so that a thread is nearly always writing when the kill comes."""
    config = write_config(SETTINGS.replace("steps = 120", "steps = 80") + "[checkpoint]\nevery_steps = 1\n")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", str(config), "--run", str(whole)]) == 0

    for stop in (10, 25, 43):
        process = forks.start("train", config, "--run", cut)
        process.wait_until(lambda stop=stop: any(step >= stop for step in saved(cut)))
        process.kill()
        assert process.wait() == -signal.SIGKILL

    assert main(["train", str(config), "--run", str(cut)]) == 0
    assert lasting(cut)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(cut)[0], lasting(whole)[0])


def saved(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-????????")]


def test_a_finished_run_says_so(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config("[budget]\nsteps = 3"), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    before = (run / "steps.jsonl").read_bytes()
    capfd.readouterr()
    assert main(["train", str(config), "--run", str(run)]) == 0
    assert "already" in capfd.readouterr().err
    assert (run / "steps.jsonl").read_bytes() == before


def test_a_run_has_one_writer(write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands) -> None:
    config, run = write_config("[budget]\nsteps = 100000"), tmp_path / "run"
    process = forks.start("train", config, "--run", run)
    process.wait_until((run / "steps.jsonl").exists)
    second = forks.run("train", config, "--run", run)
    assert second.returncode == 2
    assert "another process" in second.said
    process.send_signal(signal.SIGINT)
    assert process.wait() == 143


def test_state_is_plain_json(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, run = write_config("[budget]\nsteps = 2"), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    names = {path.suffix for path in (run / "checkpoints" / "step-00000002").iterdir()}
    assert names <= {".json", ".safetensors"}
    for path in (run / "checkpoints" / "step-00000002").glob("*.json"):
        json.loads(path.read_text())
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pkl")]
