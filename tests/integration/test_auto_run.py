"""Policy auto as a user meets it: what its run leaves, what it warns of, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stepsize.policies.horizon import FIRST_SNAPSHOT
from trainer.cli import main
from trainer.records import load_latest, read_records

WriteConfig = Callable[..., Path]
AUTO = '[stepsize]\npolicy = "auto"\n[eval]\nrows = 256\n'
STEPS = 150


def train(config: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(config), "--run", str(run), *overrides])


def test_a_run_records_its_horizons_apart_and_holds_no_snapshots_at_its_end(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(write_config(AUTO), run, "--budget.steps", str(STEPS), "--optimizer.lr", "1e-6") == 0
    single = list(read_records(run / "alpha.jsonl"))
    horizons = list(read_records(run / "horizon.jsonl"))
    assert {one["horizon"] for one in single} == {1}
    assert min(one["horizon"] for one in horizons) > 1
    assert max(one["step"] for one in horizons) < 0.85 * STEPS
    assert sorted({one["outcome"] for one in horizons}) in (["ok"], ["ascent", "ok"])
    found = load_latest(run)
    assert found is not None
    assert "snapshots" not in found.tensors


@pytest.mark.parametrize("cut", [12, 20, 90])
def test_stopped_with_snapshots_it_goes_on_to_the_same_weights(
    write_config: WriteConfig, tmp_path: Path, cut: int
) -> None:
    config, whole, stopped = write_config(AUTO), tmp_path / "whole", tmp_path / "stopped"
    schedule = ("--stepsize.cooldown", "0", "--optimizer.average", "ema")
    assert train(config, whole, "--budget.steps", str(STEPS), *schedule) == 0
    assert train(config, stopped, "--budget.steps", str(cut), *schedule) == 0
    found = load_latest(stopped)
    assert found is not None
    assert ("snapshots" in found.tensors) == (cut > 1 + FIRST_SNAPSHOT)
    assert train(config, stopped, "--budget.steps", str(STEPS), *schedule) == 0
    for name in ("steps", "alpha", "horizon"):
        lines = [
            [{**line, "seconds": 0, "phases": 0, "scheduled_rate": 0} for line in read_records(run / f"{name}.jsonl")]
            for run in (whole, stopped)
        ]
        assert lines[0] == lines[1], name
    first, second = load_latest(whole), load_latest(stopped)
    assert first is not None
    assert second is not None
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[name].keys()
        assert all(torch.equal(value, second.tensors[name][key]) for key, value in tensors.items()), name


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("--budget.epochs", "2"), "the training rows are read 2 times"),
        (("--budget.steps", "60"), "has little time in 60 steps"),
        (("--budget.steps", "120"), None),
        (("--budget.steps", "60", "--stepsize.policy", "auto_single"), None),
    ],
)
def test_it_says_where_it_is_unsure_once_as_a_run_begins(
    write_config: WriteConfig,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    said: str | None,
) -> None:
    config, run = write_config(AUTO), tmp_path / "run"
    assert train(config, run, *overrides) == 0
    told = capfd.readouterr().err
    assert ("stepsize.policy = 'auto'" in told) == (said is not None)
    if said is not None:
        assert told.count(said) == 1
        assert any(said in str(event.get("message", "")) for event in read_records(run / "events.jsonl"))
    assert train(config, run, *overrides) == 0
    assert "stepsize.policy = 'auto'" not in capfd.readouterr().err


@pytest.mark.parametrize("policy", ["auto", "auto_single", "ema", "median_hold"])
def test_an_optimizer_that_finds_its_own_length_is_refused_by_name(
    write_config: WriteConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str], policy: str
) -> None:
    pytest.importorskip("prodigyopt")
    config = write_config(f'[stepsize]\npolicy = "{policy}"\n[optimizer]\nname = "prodigy"\nlr = 1.0\n')
    assert train(config, tmp_path / "run", "--budget.steps", "3") == 2
    assert "'prodigy', which finds the length of its steps by itself" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(config, tmp_path / "run", "--budget.steps", "3", "--stepsize.policy", "observe") == 0
