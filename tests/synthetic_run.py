"""Writes run directories of any length that look like real ones, without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PHASE_SECONDS = {
    "data_wait": 0.0003,
    "transfer": 0.0002,
    "forward": 0.004,
    "backward": 0.009,
    "optimizer": 0.007,
    "alpha": 0.002,
    "other": 0.0002,
}
ROWS = 256


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def step_records(steps: int, *, seed: int = 0, peak: float = 1e-3) -> list[dict[str, Any]]:
    """Lines of steps.jsonl: a falling noisy loss, warm-up and cosine, phases that sum to the step's time."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.03, steps)
    records = []
    for step in range(steps):
        warmup, done = 0.05 * steps, step / steps
        rate = peak * min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * done))
        stall = 5.0 if done > 0.8 else 1.0
        jitter = rng.lognormal(0, 0.25, len(PHASE_SECONDS))
        phases = {name: mean * j for (name, mean), j in zip(PHASE_SECONDS.items(), jitter, strict=True)}
        phases["data_wait"] *= stall
        records.append(
            {
                "step": step,
                "epoch": int(2 * done),
                "rows": ROWS,
                "loss": 0.47 + 0.2 * math.exp(-8 * done) + noise[step],
                "learning_rate": rate,
                "seconds": sum(phases.values()),
                "phases": phases,
            }
        )
    return records


def alpha_records(steps: list[dict[str, Any]], *, every: int = 5, variants: bool = False) -> list[dict[str, Any]]:
    """Lines of alpha.jsonl: ratios about twice the rate, a third of them negative, a few without numbers."""
    rng = np.random.default_rng(1)
    records = []
    for step in steps[::every]:
        rate = step["learning_rate"]
        curvature = rate**2 * 50 * rng.lognormal(0, 0.3)
        slope = -curvature * 2.0 * (1 + rng.normal(0, 2.0))
        relative = -slope / curvature
        outcome = "ok" if relative > 0 else "ascent"
        record = {
            "step": step["step"],
            "age": 0,
            "outcome": outcome,
            "slope": slope,
            "curvature": curvature,
            "relative": relative,
            "absolute": relative * rate,
            "standard_error": abs(relative) * 0.4,
            "learning_rate": rate,
        }
        if variants:
            record["biased"] = {"relative": 55 * rng.lognormal(0, 0.5)}
            record["hybrid"] = {"relative": relative * 0.9}
        if rng.random() < 0.03:
            names = ("slope", "curvature", "relative", "absolute", "standard_error")
            record |= {"outcome": "dropped", **dict.fromkeys(names)}
        records.append(record)
    return records


def evaluation_records(steps: list[dict[str, Any]], *, times: int = 8) -> list[dict[str, Any]]:
    """Lines of evals.jsonl for validation and test; the best validation loss is the one before the last."""
    records = []
    for index in range(1, times + 1):
        step = len(steps) * index // times
        loss = 0.49 + 0.05 / index + (0.02 if index == times else 0.0)
        for split, offset in (("validation", 0.0), ("test", 0.006)):
            records.append(
                {
                    "step": step,
                    "split": split,
                    "loss": loss + offset,
                    "auc": 0.78 - 0.02 / index,
                    "normalized_entropy": (loss + offset) / 0.57,
                    "rows": 13_000,
                    "seconds": 0.8,
                    "training_seconds": sum(record["seconds"] for record in steps[:step]),
                }
            )
    return records


def write_run(run: Path, steps: int, *, variants: bool = False) -> Path:
    """A run directory with all four record files."""
    run.mkdir(parents=True, exist_ok=True)
    records = step_records(steps)
    write_lines(run / "steps.jsonl", records)
    write_lines(run / "alpha.jsonl", alpha_records(records, variants=variants))
    write_lines(run / "evals.jsonl", evaluation_records(records))
    messages = [{"step": steps // 2, "event": "policy", "message": "learning rate 9.1e-4 to 1.4e-3: median of 25"}]
    write_lines(run / "events.jsonl", [{"event": "start", "step": 0}, *messages])
    return run
