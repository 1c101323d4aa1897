"""stepsize.delay as a user meets it: what is written down, what a continued run may do, and what it leaves."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.config import config_from, load_config
from trainer.job.decided import decided, kept_settings, with_delay
from trainer.records import read_records
from trainer.study.definition import changed_key, read_study

WriteConfig = Callable[..., Path]
EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
SETTINGS = """
[schedule]
name = "constant"
[stepsize]
policy = "{policy}"
interval = 10
count = 4
start = 3
cooldown = 0.0
[eval]
rows = 256
[checkpoint]
every_steps = 15
"""


def train(config: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(config), "--run", str(run), *overrides])


def kept_delay(run: Path) -> int:
    return tomllib.loads((run / "config.toml").read_text())["stepsize"]["delay"]


def test_the_delay_that_was_used_is_written_down_and_kept(
    write_config: WriteConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, plain, late = write_config(), tmp_path / "plain", tmp_path / "late"
    assert train(config, plain, "--budget.steps", "2") == 0
    assert kept_delay(plain) == (4 if torch.cuda.is_available() else 0)
    assert train(config, late, "--budget.steps", "2", "--stepsize.delay", "3") == 0
    assert kept_delay(late) == 3
    assert train(config, late, "--budget.steps", "4") == 0, "a delay that is left open is the run's own"
    assert kept_delay(late) == 3
    assert [record["age"] for record in read_records(late / "alpha.jsonl")] == [3, 2, 1, 0]
    capfd.readouterr()
    assert train(config, late, "--budget.steps", "6", "--stepsize.delay", "1") == 2
    assert "was started with stepsize.delay = 3, now it is 1" in capfd.readouterr().err


def test_a_run_of_an_earlier_version_goes_on_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It knew no such key, and on the CPU an estimate was there at once."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.toml")
    assert "delay" not in config.read_text()
    assert with_delay(load_config(config), torch.device("cpu")).stepsize.delay == 0
    assert with_delay(load_config(config), torch.device("cuda")).stepsize.delay == 4
    if not torch.cuda.is_available():
        assert train(config, Path("run"), "--stepsize.delay", "4") == 2
        assert "was started with stepsize.delay = 0, now it is 4" in capfd.readouterr().err
        assert train(config, Path("run"), "--stepsize.delay", "0") == 0


def test_settings_that_cannot_be_read_are_left_to_whoever_opens_the_run(tmp_path: Path) -> None:
    config = config_from({"data": {"path": str(tmp_path)}}, where="test")
    assert kept_settings(tmp_path) is None
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "config.toml").write_text("no TOML")
    assert decided(config, tmp_path) == with_delay(config.resolved(), torch.device("cpu"))


@pytest.mark.parametrize(("policy", "delay"), [("observe", "4"), ("median_hold", "12"), ("ema", "1"), ("auto", "4")])
def test_a_run_whose_budget_grows_is_the_run_of_the_larger_budget(
    write_config: WriteConfig, tmp_path: Path, policy: str, delay: str
) -> None:
    """Estimates under way at the end were on record already; they are delivered, and recorded, as if it had gone on."""
    config, whole, grown = write_config(SETTINGS.format(policy=policy)), tmp_path / "whole", tmp_path / "grown"
    assert train(config, whole, "--budget.steps", "45", "--stepsize.delay", delay) == 0
    assert train(config, grown, "--budget.steps", "25", "--stepsize.delay", delay) == 0
    cut_short = list(read_records(grown / "alpha.jsonl"))
    assert train(config, grown, "--budget.steps", "45") == 0
    tensors, steps, estimates = lasting(whole)
    grown_tensors, grown_steps, grown_estimates = lasting(grown)
    assert (grown_steps, grown_estimates) == (steps, estimates)
    weights = {name: value for name, value in tensors.items() if name.startswith("model.")}
    assert weights
    assert same_bits(weights, {name: value for name, value in grown_tensors.items() if name in weights})
    measured = {record["step"] for record in estimates if record["step"] < 25}
    assert {record["step"] for record in cut_short} == measured, "every wanted estimate was on record at the first end"
    assert {record["age"] for record in estimates if record["step"] + int(delay) < 45} == {int(delay)}


def test_a_finished_run_keeps_the_estimates_that_were_due_after_it(write_config: WriteConfig, tmp_path: Path) -> None:
    config, run = write_config(SETTINGS.format(policy="observe")), tmp_path / "run"
    assert train(config, run, "--budget.steps", "16", "--stepsize.delay", "4") == 0
    before = (run / "alpha.jsonl").read_bytes()
    assert [(record["step"], record["age"]) for record in read_records(run / "alpha.jsonl")][-3:] == [
        (13, 2),
        (14, 1),
        (15, 0),
    ]
    assert train(config, run, "--budget.steps", "16") == 0
    assert (run / "alpha.jsonl").read_bytes() == before


def test_a_study_varies_the_delay_and_goes_on_with_the_one_that_was_used(tmp_path: Path) -> None:
    file = tmp_path / "delays.toml"
    file.write_text('[data]\npath = "DATA"\n[[study.arm]]\nname = "lags"\nset."stepsize.delay" = [0, 4]\n')
    runs = read_study(file).unfold().runs
    assert [run.config.stepsize.delay for run in runs] == [0, 4]
    left_open = config_from({"data": {"path": "DATA"}}, where="test")
    used = with_delay(left_open, torch.device("cuda"))
    assert changed_key(left_open, used) is None
    assert changed_key(runs[0].config, used) is not None
    other = replace(used, stepsize=replace(used.stepsize, interval=70))
    assert changed_key(left_open, other) == ("stepsize.interval", 100, 70)
