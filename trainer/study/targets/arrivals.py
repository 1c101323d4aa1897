"""When the runs of a study reach its targets, by steps and by seconds of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.records import Column, read_records
from trainer.study.results import Cell, Result, RunOutcome, cells
from trainer.study.targets.config import TargetSplit

if TYPE_CHECKING:
    from trainer.study.definition import Study, StudyRun


@dataclass(frozen=True, kw_only=True)
class Target:
    """A loss to reach."""

    split: TargetSplit
    loss: float
    inclusive: bool = False
    """Whether the loss itself counts."""
    final: bool = True
    """Whether it stays: a baseline that is still running may change it."""

    def reached(self, losses: Column) -> NDArray[np.bool_]:
        return losses <= self.loss if self.inclusive else losses < self.loss


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One run's evaluations of one split, in their order."""

    steps: Column
    losses: Column
    seconds: Column
    """Of training, without evaluation, checkpoints and start."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A run's first evaluation at which a target is reached; infinite steps and seconds if there is none."""

    run: StudyRun
    target: Target
    steps: float
    seconds: float
    loss: float
    """The loss of that evaluation; nan if there is none."""
    outcome: RunOutcome
    """How far the run is: one that is not final may still arrive."""

    @property
    def arrived(self) -> bool:
        return math.isfinite(self.steps)


def targets_of(study: Study, results: Sequence[Result]) -> list[Target]:
    """The study's targets; none while the baseline that is to set them has no finished cell."""
    config = study.settings.targets
    if config is None:
        return []
    if config.baseline is None:
        return [Target(split=split, loss=getattr(config, split)) for split in config.splits]
    mine = [cell for cell in cells(study, results) if cell.arm == config.baseline]
    best = next((cell for cell in mine if cell.best_of_arm), None)
    if best is None:
        return []
    finished = [result for result in best.results if result.outcome is RunOutcome.FINISHED]
    final = all(result.outcome.final for cell in mine for result in cell.results)
    losses: dict[TargetSplit, list[float]] = {
        "validation": [result.best_loss for result in finished],
        "test": [result.test_loss for result in finished],
    }
    return [
        Target(split=split, loss=ranked[len(ranked) // 2], inclusive=True, final=final)
        for split, values in losses.items()
        if (ranked := sorted(filter(math.isfinite, values)))
    ]


def curves_of(run: Path) -> Mapping[str, LossCurve]:
    """The evaluations of each split in RUN/evals.jsonl; of one that was repeated after a resume, the latest."""
    latest: dict[str, dict[int, tuple[float, float]]] = {}
    for record in read_records(run / "evals.jsonl", damaged=lambda _: None):
        loss, seconds = record.get("loss"), record.get("training_seconds")
        if isinstance(record.get("step"), int) and seconds is not None:
            values = (math.nan if loss is None else float(loss), float(seconds))
            latest.setdefault(str(record.get("split")), {})[record["step"]] = values
    return {split: _curve(by_step) for split, by_step in latest.items()}


def _curve(by_step: Mapping[int, tuple[float, float]]) -> LossCurve:
    steps = sorted(by_step)
    values = np.array([by_step[step] for step in steps], dtype=np.float64).reshape(-1, 2)
    return LossCurve(steps=np.array(steps, dtype=np.float64), losses=values[:, 0], seconds=values[:, 1])


def arrival(result: Result, target: Target, curve: LossCurve | None) -> Arrival:
    """When the run of `result` reached `target`. What comes after the budget's seconds does not count."""
    limit = result.run.config.budget.seconds
    found = np.zeros(0, dtype=np.int64)
    if curve is not None:
        in_time = curve.seconds <= (math.inf if limit is None else limit)
        found = np.flatnonzero(target.reached(curve.losses) & in_time)
    nothing = {"steps": math.inf, "seconds": math.inf, "loss": math.nan}
    numbers = nothing
    if curve is not None and len(found):
        first = int(found[0])
        numbers = {
            "steps": float(curve.steps[first]),
            "seconds": float(curve.seconds[first]),
            "loss": float(curve.losses[first]),
        }
    return Arrival(run=result.run, target=target, outcome=result.outcome, **numbers)


@dataclass(frozen=True, kw_only=True)
class CellArrivals:
    """All runs of one cell on their way to one target. Runs that never arrive count as infinitely late."""

    cell: Cell
    target: Target
    arrivals: tuple[Arrival, ...]
    """Of the runs that are final or have arrived."""

    @property
    def arrived(self) -> int:
        return sum(one.arrived for one in self.arrivals)

    @property
    def steps(self) -> float:
        """Median; infinite if half of the runs or more never arrive, nan if there are none."""
        return _median([one.steps for one in self.arrivals])

    @property
    def seconds(self) -> float:
        """Median, likewise."""
        return _median([one.seconds for one in self.arrivals])

    @property
    def rows_per_second(self) -> float:
        """Rows trained on in a second of training, all runs together."""
        results = [result for result in self.cell.results if result.training_seconds > 0]
        seconds = sum(result.training_seconds for result in results)
        rows = sum(result.steps * result.run.config.data.batch_rows for result in results)
        return rows / seconds if seconds else math.nan


def _median(values: Sequence[float]) -> float:
    """The middle one, or of two the mean; infinite as soon as one of the two is."""
    ranked = sorted(values)
    if not ranked:
        return math.nan
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2


def cell_arrivals(
    grouped: Sequence[Cell], targets: Sequence[Target], curves: Mapping[str, Mapping[str, LossCurve]]
) -> list[CellArrivals]:
    """Every cell on its way to every target; `curves` by the name of the run and the split."""
    found = []
    for cell in grouped:
        for target in targets:
            each = [arrival(one, target, curves[one.run.name].get(target.split)) for one in cell.results]
            known = tuple(one for one in each if one.arrived or one.outcome.final)
            found.append(CellArrivals(cell=cell, target=target, arrivals=known))
    return found
