"""The best evaluation of a run, by its records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from trainer.records.records import read_records


class BestEvaluation(NamedTuple):
    """The lowest validation loss of a run, the first of equals."""

    step: int
    loss: float


def best_evaluation(run: str | Path) -> BestEvaluation | None:
    """The best one in RUN/evals.jsonl; None without a finite validation loss."""
    found = [
        BestEvaluation(step, loss)
        for record in read_records(Path(run) / "evals.jsonl", damaged=lambda _: None)
        if record.get("split") == "validation"
        and isinstance(step := record.get("step"), int)
        and isinstance(loss := record.get("loss"), (int, float))
        and math.isfinite(loss)
    ]
    return min(found, key=lambda each: each.loss, default=None)
