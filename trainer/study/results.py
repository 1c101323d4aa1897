"""What the runs of a study came to: one result a run, one summary a cell, and what goes with the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config
from trainer.records import Column, RunHistory, read_records
from trainer.report import best_of_split, evaluation_at
from trainer.study.definition import Study, StudyRun
from trainer.study.scaling import timed

NOTHING = np.zeros(0)


class RunOutcome(StrEnum):
    """How far a run of a study is."""

    WAITING = "waiting"
    """Not begun."""
    UNFINISHED = "unfinished"
    """Begun; running the study again continues it."""
    FINISHED = "finished"
    """Its budget or target is reached."""
    DIVERGED = "diverged"
    """Its loss, in training or at its end, is not finite."""

    @property
    def final(self) -> bool:
        """Whether there is nothing left to do."""
        return self in (RunOutcome.FINISHED, RunOutcome.DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Some numbers, summed up."""

    count: int
    mean: float
    sd: float
    """Standard deviation of the sample; nan of a single number."""
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error of the mean; nan of fewer than two numbers."""
        return self.sd / math.sqrt(self.count) if self.count else math.nan

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Of those that are finite; all nan if none is."""
        finite = np.array([number for number in numbers if math.isfinite(number)])
        if len(finite) == 0:
            return cls(count=0, mean=math.nan, sd=math.nan, low=math.nan, high=math.nan)
        sd = float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
        return cls(
            count=len(finite), mean=float(finite.mean()), sd=sd, low=float(finite.min()), high=float(finite.max())
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run came to; nan for what it does not have."""

    run: StudyRun
    outcome: RunOutcome
    steps: int
    best_loss: float
    """Lowest validation loss of all evaluations, and the step it was seen at."""
    best_step: float
    final_loss: float
    """Validation loss of the last evaluation."""
    test_loss: float
    """Where the validation loss is best."""
    training_seconds: float
    """Evaluation and checkpoints not counted."""
    rate: Spread
    """Applied learning rates after the warm-up."""
    rate_median: float
    within: Mapping[str, float]
    """Steps and best validation loss within the study's shorter budgets, by the name of their column."""
    rates: tuple[Column, Column]
    """Steps and the rate of each."""
    evaluations: tuple[Column, Column]
    """Steps and the validation loss after each."""
    damaged_lines: int
    """Lines of its records that could not be read and are left out of every number here."""


def collect(study: Study, out: Path) -> dict[str, Result]:
    """The result of every run by its name, in the study's order."""
    return {run.name: collect_run(study, run, out) for run in study.runs}


def study_on_this_machine(study: Study, out: Path) -> Study | None:
    """The study with its seconds turned into this machine's by the runs in `out`, if it has a clock; None as long as
    none of the runs that it goes by is finished."""
    if study.settings.clock is None:
        return study
    ours = [collect_run(study, run, out) for run in study.runs if run.arm == study.settings.clock.arm]
    return timed(study, [result.training_seconds for result in ours if result.outcome is RunOutcome.FINISHED])


def collect_run(study: Study, run: StudyRun, out: Path) -> Result:
    """What `out`/runs has of one run; one in progress gives what it has so far."""
    history = RunHistory.load(out / run.path)
    steps, rates = history.steps["step"], history.steps["learning_rate"]
    validation = history.evaluations.get("validation", {"step": NOTHING, "loss": NOTHING, "training_seconds": NOTHING})
    best = best_of_split(history)
    test = evaluation_at(history, "test", best["step"]) if best else None
    after = rates[_warmup_steps(run.config, history) :]
    return Result(
        run=run,
        outcome=_outcome(out / run.path, len(steps), validation["loss"]),
        steps=len(steps),
        best_loss=best["loss"] if best else math.nan,
        best_step=best["step"] if best else math.nan,
        final_loss=float(validation["loss"][-1]) if len(validation["loss"]) else math.nan,
        test_loss=test["loss"] if test else math.nan,
        training_seconds=float(np.nansum(history.steps["seconds"])),
        rate=Spread.of(after),
        rate_median=float(np.nanmedian(after)) if np.isfinite(after).any() else math.nan,
        within=_within(study, history, validation),
        rates=(steps, rates),
        evaluations=(validation["step"], validation["loss"]),
        damaged_lines=history.damaged_lines,
    )


def _outcome(run: Path, steps: int, losses: Column) -> RunOutcome:
    if not steps:
        return RunOutcome.WAITING
    stops = [record for record in read_records(run / "events.jsonl") if record.get("event") == "stop"]
    # a stop that later steps went beyond was not the last word
    if not stops or stops[-1]["step"] < steps or stops[-1]["reason"] in ("interrupted", "hung"):
        return RunOutcome.UNFINISHED
    diverged = stops[-1]["reason"] == "diverged" or (len(losses) > 0 and not math.isfinite(losses[-1]))
    return RunOutcome.DIVERGED if diverged else RunOutcome.FINISHED


def _warmup_steps(config: Config, history: RunHistory) -> int:
    """Steps before the rate is the schedule's peak or the policy's own."""
    stepsize = config.stepsize
    scheduled = history.steps["scheduled_rate"]
    warmup = int(np.nanargmax(scheduled)) if np.isfinite(scheduled).any() else 0
    match stepsize.policy:
        case "auto":
            return (stepsize.start or 0) + stepsize.warmup
        case "median_hold" | "ema":
            return max(warmup, stepsize.start or 0)
        case _:
            return warmup


def _within(study: Study, history: RunHistory, validation: Mapping[str, Column]) -> dict[str, float]:
    values: dict[str, float] = {}
    for steps in study.settings.within_steps:
        values[f"best_loss_within_{steps}_steps"] = _lowest(validation["loss"][validation["step"] <= steps])
    clock = np.cumsum(np.nan_to_num(history.steps["seconds"]))
    for seconds in study.settings.within_seconds:
        values[f"steps_within_{seconds:g}_seconds"] = float(np.searchsorted(clock, seconds, side="right"))
        inside = validation["training_seconds"] <= seconds
        values[f"best_loss_within_{seconds:g}_seconds"] = _lowest(validation["loss"][inside])
    return values


def _lowest(losses: Column) -> float:
    return float(np.nanmin(losses)) if np.isfinite(losses).any() else math.nan


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All seeds of one cell of an arm. Losses are those of the runs that finished."""

    arm: str
    cell: str
    values: Mapping[str, Any]
    results: tuple[Result, ...]
    best_loss: Spread
    final_loss: Spread
    test_loss: Spread
    difference: Spread
    """Best loss less that of the first arm's best cell with the same seed; nan for that cell itself."""
    best_of_arm: bool

    def count(self, outcome: RunOutcome) -> int:
        return sum(result.outcome is outcome for result in self.results)


def cells(study: Study, results: Sequence[Result]) -> list[Cell]:
    """The study's cells in its order. Best of its arm is the lowest mean best loss among cells without divergence."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.run.arm, result.run.cell), []).append(result)
    losses = {key: {one.run.seed: one.best_loss for one in group if _counts(one)} for key, group in grouped.items()}
    best: dict[str, tuple[str, str]] = {}
    for key, group in grouped.items():
        if not losses[key] or any(one.outcome is RunOutcome.DIVERGED for one in group):
            continue
        champion = best.get(key[0])
        if champion is None or Spread.of(losses[key].values()).mean < Spread.of(losses[champion].values()).mean:
            best[key[0]] = key
    reference = best.get(study.settings.arm[0].name)
    against = losses[reference] if reference else {}
    return [
        Cell(
            arm=key[0],
            cell=key[1],
            values=group[0].run.values,
            results=tuple(group),
            best_loss=Spread.of(losses[key].values()),
            final_loss=Spread.of(one.final_loss for one in group if _counts(one)),
            test_loss=Spread.of(one.test_loss for one in group if _counts(one)),
            difference=Spread.of(_differences(losses[key], against) if key != reference else ()),
            best_of_arm=best.get(key[0]) == key,
        )
        for key, group in grouped.items()
    ]


def _counts(result: Result) -> bool:
    return result.outcome is RunOutcome.FINISHED and math.isfinite(result.best_loss)


def _differences(losses: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    return [loss - reference[seed] for seed, loss in losses.items() if seed in reference]
