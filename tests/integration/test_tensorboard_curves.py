"""A run's curves for TensorBoard are its records, over a stop and a kill as well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.records import read_records

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
)

SETTINGS = """
tensorboard_every_steps = 1
[budget]
steps = 40
[stepsize]
policy = "observe"
interval = 2
count = 2
start = 0
delay = 3
[eval]
every_steps = 10
rows = 256
[checkpoint]
every_steps = 10
"""


def test_curves_are_the_records(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """The run ends after 40 steps, goes back to 30 as a kill would make it, and goes on to 60."""
    config, run = write_config(SETTINGS), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    shutil.rmtree(run / "checkpoints" / "step-00000040")
    assert main(["train", str(config), "--run", str(run), "--budget.steps", "60"]) == 0

    shown = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    shown.Reload()
    curves = {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    steps = list(read_records(run / "steps.jsonl"))
    assert curves["loss/train"] == [(record["step"] + 1, pytest.approx(record["loss"])) for record in steps]
    rates = [(record["step"] + 1, pytest.approx(record["learning_rate"])) for record in steps]
    assert curves["learning_rate"] == rates
    evaluations = [record for record in read_records(run / "evals.jsonl") if record["split"] == "validation"]
    assert curves["loss/validation"] == [(each["step"], pytest.approx(each["loss"])) for each in evaluations]
    estimates = [record for record in read_records(run / "alpha.jsonl") if record["relative"] is not None]
    drawn = [(each["step"] + 4, pytest.approx(each["relative"])) for each in estimates]
    assert curves["alpha/relative"] == drawn
    assert [record["step"] for record in steps] == list(range(60))
