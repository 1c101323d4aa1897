"""Runs made by hand: what a study is given where nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from stepsize.suite import TASKS, Task
from stepsize.suite.methods import METHODS
from stepsize.suite.plan import Lookup, wanted
from stepsize.suite.store import FinishedRun, PlannedRun

TINY: Task = replace(
    TASKS["teacher-classes"],
    name="tiny",
    rows=320,
    held=64,
    batch=32,
    epochs=2,
    shape={"hidden": (8,)},
    optimizer="sgd",
)
Losses = Callable[[PlannedRun], tuple[float, float]]


def finished(
    planned: PlannedRun, validation: float, test: float, *, seconds: float = 1.0, diverged: bool = False
) -> FinishedRun:
    """A run that came from losses of 9 to these, at its end and after `seconds`."""
    evaluations = [
        {"step": 0, "seconds": 0.0, "validation": {"raw": 9.0}, "weights": "raw", "test": 9.0},
        {"step": 20, "seconds": seconds, "validation": {"raw": validation}, "weights": "raw", "test": test},
    ]
    record = {"evaluations": evaluations, "diverged": diverged, "error": None, "rates": [[0, 0.1], [10, 0.2]]}
    return FinishedRun(run=planned, record={**record, "steps": 20, "said": [], "outcomes": {}, "wall_seconds": 1.0})


def all_runs(tasks: Iterable[Task], losses: Losses, *, seeds: int = 2, methods: Iterable[str] = METHODS) -> Lookup:
    """Every run that a study of these tasks wants until it wants none."""
    known: dict[PlannedRun, FinishedRun] = {}
    for task in tasks:
        while runs := wanted(task, methods, seeds, known.get):
            known |= {planned: finished(planned, *losses(planned)) for planned in runs}
    return known.get
