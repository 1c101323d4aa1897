"""The best evaluation of a run, by its records."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trainer.records.history import lowest_loss, read_evaluations
from trainer.records.records import read_records


class BestEvaluation(NamedTuple):
    """The lowest validation loss of a run, the first of equals."""

    step: int
    loss: float


def best_evaluation(run: str | Path) -> BestEvaluation | None:
    """The best one in RUN/evals.jsonl; None without a finite validation loss."""
    records = read_records(Path(run) / "evals.jsonl", damaged=lambda _: None)
    table = read_evaluations(records).get("validation")
    if table is None or (best := lowest_loss(table)) is None:
        return None
    return BestEvaluation(int(table["step"][best]), float(table["loss"][best]))
