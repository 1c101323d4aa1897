"""Writes the runs of a study as if they had been made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.synthetic_run import step_records, write_lines
from trainer.study.definition import StudyRun

STEPS = 60
OFFSETS = {"train": -0.1, "validation": 0.0, "test": 0.5}
"""Of a split's loss from the validation loss."""


def write_result(
    out: Path,
    run: StudyRun,
    loss: float,
    *,
    reason: str | None = "budget",
    worse_end: float = 0.0,
    splits: tuple[str, ...] = ("validation", "test"),
    step_seconds: float = 0.03,
) -> Path:
    """A run of `STEPS` steps of 0.03 s each, evaluated after 30 (loss + 0.01), 50 (loss) and 60 (loss + worse_end)."""
    folder = out / run.path
    folder.mkdir(parents=True)
    steps = step_records(STEPS, peak=run.config.optimizer.lr or 8e-3)
    for record in steps:
        record["scheduled_rate"], record["seconds"] = record["learning_rate"], step_seconds
    write_lines(folder / "steps.jsonl", steps)
    evaluations = [
        {
            "step": step,
            "split": split,
            "loss": value + offset if math.isfinite(value) else None,
            "training_seconds": step_seconds * step,
            "seconds": 0.1,
        }
        for step, value in ((30, loss + 0.01), (50, loss), (STEPS, loss + worse_end))
        for split in splits
        for offset in [OFFSETS[split]]
    ]
    write_lines(folder / "evals.jsonl", evaluations)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0}]
    if reason is not None:
        events.append({"event": "stop", "step": STEPS, "reason": reason})
    write_lines(folder / "events.jsonl", events)
    return folder


RNG = np.random.default_rng(0)


def numbers(slope: float, curvature: float, rate: float) -> dict[str, float]:
    relative = -slope / curvature
    return {"slope": slope, "curvature": curvature, "relative": relative, "absolute": relative * rate}


def estimate(step: int) -> dict[str, Any]:
    """A line of alpha.jsonl with all that experiment 1 of the published study records."""
    rate = 1e-3 * (1 + step / 100)
    slopes, curvatures = RNG.normal(-1, 2, 2), RNG.lognormal(0, 0.2, 2)
    return {
        "step": step,
        "outcome": "ok",
        "learning_rate": rate,
        **numbers(slopes[0], curvatures[0], rate),
        "biased": numbers(slopes[1] - 5, curvatures[1], rate),
        "hybrid": numbers(slopes[0], curvatures[1], rate),
        "diagnostics": {"cosine_b1": -0.01 * step, "cosine_b2": -0.5},
    }
