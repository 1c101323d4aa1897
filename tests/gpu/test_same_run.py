"""A run is the same run, bit for bit: launched one by one or ahead, measured or not, cut or whole, here or there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.shards import Manifest
from stepsize.worker import StepSizeWorker
from stepsize.worker.measurement_queue import MeasurementQueue
from tests.gpu.runs import STEPS, Traces, everything_of, on, settings, trained
from trainer.job import training_state
from trainer.records import load_latest

POLICIES = ["observe", "auto", "median_hold"]
ROOT = Path(__file__).resolve().parents[2]


def launched_one_by_one(data: Path, device: str, out: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The traces of a run of `auto` in a process where every launch waits for the device."""
    command = [sys.executable, "-m", "tests.gpu.runs", str(data), device, str(out), "auto", str(STEPS)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "CUDA_LAUNCH_BLOCKING": "1"}, check=True)
    return json.loads((out / "traces.json").read_text(encoding="utf-8")), load_file(out / "tensors.safetensors")


def test_launched_one_by_one_or_ahead(data: Path, device: str, tmp_path: Path) -> None:
    ahead = trained(settings(data, policy="auto"), device)
    assert len(ahead.steps) == STEPS
    assert ahead.estimates
    traces, tensors = launched_one_by_one(data, device, tmp_path / "one_by_one")
    assert traces == ahead.as_json()
    assert Traces(tensors=tensors).same_bits(Traces(tensors=ahead.tensors))


def measured_and_not(data: Path, device: str) -> bool:
    """Whether a run with dropout leaves the same, measured at every third step and never."""
    both = [trained(settings(data, policy=policy, model={"dropout": 0.2}), device) for policy in ("observe", "none")]
    assert both[0].estimates
    return both[0].same_bits(both[1], estimates=False)


def test_measured_or_not(data: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_and_not(data, device)
    after_step = StepSizeWorker.after_step

    def drawing(worker: StepSizeWorker, **options: Any) -> None:
        after_step(worker, **options)
        torch.rand(1, device=device)

    monkeypatch.setattr(StepSizeWorker, "after_step", drawing)
    assert not measured_and_not(data, device), "measuring that draws from training's generators goes unnoticed"


def cut_and_whole(data: Path, device: str, policy: str, run: Path) -> bool:
    """Whether 31 steps, a checkpoint and 29 more are the 60 steps."""
    config = settings(data, policy=policy, model={"dropout": 0.2})
    whole = trained(config, device)
    cut = trained(config, device, run=run, stop_after=31)
    found = load_latest(run)
    assert found is not None
    assert 31 <= found.step < STEPS
    trained(config, device, run=run, traces=cut)
    assert len(whole.steps) == STEPS
    return cut.same_bits(whole)


@pytest.mark.parametrize("policy", POLICIES)
def test_cut_or_whole(data: Path, device: str, policy: str, tmp_path: Path) -> None:
    assert cut_and_whole(data, device, policy, tmp_path)


def no_undelivered_estimates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MeasurementQueue, "restore", lambda queue, undelivered: None)


def no_generators(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training_state, "restore_random_state", lambda state: None)


@pytest.mark.parametrize("mutant", [no_undelivered_estimates, no_generators])
def test_what_a_checkpoint_forgets_is_noticed(
    data: Path,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutant(monkeypatch)
    assert not cut_and_whole(data, device, "observe", tmp_path)


def loaded(config: Any, run: Path, device: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """What a run on `device` has once it has loaded `run`'s checkpoint: tensors, torch's generator, estimates due."""
    with on(device), training_state.open_training(config, Manifest.load(config.data.path)) as state:
        found = load_latest(run, device=state.learner.device)
        assert found is not None
        state.load(found, run=run)
        undelivered = state.worker.state_dict()["undelivered"]
        return everything_of(state), torch.get_rng_state(), len(undelivered)


@pytest.mark.parametrize("saved_on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("table", ["lazy", "dense"])
def test_a_checkpoint_of_one_device_is_loaded_on_another(
    data: Path, device: str, saved_on: str, table: str, tmp_path: Path
) -> None:
    config = settings(data, optimizer={"table": table, "average": "ema"})
    saved = trained(config, saved_on, run=tmp_path, stop_after=31)
    found = load_latest(tmp_path)
    assert found is not None
    tensors, generator, undelivered = loaded(config, tmp_path, device)
    assert undelivered == len(found.state["worker"]["undelivered"]) > 0
    assert Traces(tensors=tensors).same_bits(Traces(tensors=saved.tensors))
    assert torch.equal(generator, found.state["random"]["torch"])
    ended = trained(config, device, run=tmp_path, traces=saved)
    assert [step for step, _, _ in ended.steps] == list(range(STEPS))
