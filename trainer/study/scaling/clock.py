"""Budgets in seconds of this machine: multiples of what one arm takes on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer.config import Config
from trainer.study.grid import value_text

if TYPE_CHECKING:
    from trainer.study.definition import Study, StudyRun


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """The `[study.clock]` section: what a second is in this study's budgets."""

    arm: str
    """The arm whose training time is the unit. It has no budget in seconds itself, and is made before those that do."""
    seconds: float
    """What a run of it took where the budgets come from. Every budget.seconds, eval.every_seconds and
    within_seconds is multiplied by the time that it takes here, over this."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"study.clock.seconds is {self.seconds}; give a positive number")


def timed(study: Study, taken: Iterable[float]) -> Study | None:
    """The study with its seconds turned into those of this machine, given what the finished runs of the clock's arm
    took; None if there is none yet. A study without a clock is returned as it is."""
    clock, taken = study.settings.clock, list(taken)
    if clock is None:
        return study
    if not taken:
        return None
    factor = sum(taken) / len(taken) / clock.seconds
    return replace(
        study,
        settings=replace(
            study.settings,
            within_seconds=tuple(_rounded(seconds * factor) for seconds in study.settings.within_seconds),
            clock=None,
        ),
        runs=tuple(_timed_run(run, factor) for run in study.runs),
    )


def _timed_run(run: StudyRun, factor: float) -> StudyRun:
    budget, evaluation = run.config.budget, run.config.eval
    if budget.seconds is None:
        return run
    config: Config = replace(
        run.config,
        budget=replace(budget, seconds=_rounded(budget.seconds * factor)),
        eval=evaluation
        if evaluation.every_seconds is None
        else replace(evaluation, every_seconds=_rounded(evaluation.every_seconds * factor)),
    )
    return replace(run, config=config)


def _rounded(seconds: float) -> float:
    """To six digits, as names of columns show it."""
    return float(value_text(seconds))
