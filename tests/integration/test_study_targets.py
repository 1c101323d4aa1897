"""A study with targets: real runs go on past the first target, and the time to each counts training alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.cli import main
from trainer.records import RunHistory

STUDY = """
[budget]
steps = 24
[eval]
rows = 512
every_steps = 4
[study.targets]
baseline = "slow"
[[study.arm]]
name = "slow"
set = { "optimizer.lr" = 1e-4, "stepsize.policy" = "none" }
[[study.arm]]
name = "fast"
set = { "optimizer.lr" = 5e-3, "stepsize.policy" = "none", "schedule.name" = "constant" }
"""


def test_time_to_a_target_is_the_time_of_the_steps_until_then(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["study", str(write_config(STUDY)), "--out", str(out)]) == 0
    with (out / "arrivals.csv").open(encoding="utf-8") as file:
        rows = {(row["arm"], row["split"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    for arm in ("slow", "fast"):
        history = RunHistory.load(out / "runs" / arm / "seed0")
        assert len(history.steps["step"]) == 24
        clock = np.cumsum(history.steps["seconds"])
        for split, evaluations in history.evaluations.items():
            row, target = rows[arm, split], float(rows["slow", split]["target"])
            first = int(np.flatnonzero(evaluations["loss"] <= target)[0])
            steps = int(evaluations["step"][first])
            assert (int(row["steps"]), float(row["loss"])) == (steps, evaluations["loss"][first])
            assert float(row["seconds"]) == pytest.approx(clock[steps - 1], rel=1e-12)
    assert int(rows["fast", "validation"]["steps"]) < int(rows["slow", "validation"]["steps"])
    assert "validation target reached after" in (out / "index.html").read_text(encoding="utf-8")
