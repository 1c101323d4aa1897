"""The budgets that an arm's runs are compared within: their own, and the study's shorter ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.study.definition import Study
from trainer.study.results import Result


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One budget, and what a result has within it."""

    name: str
    """As tables show it: `853 steps`."""
    stem: str
    """As part of a file name; empty for a run's own budget."""
    loss: Callable[[Result], float]
    """Best validation loss within it."""
    steps: Callable[[Result], float]
    """Steps completed within it."""


def budgets_of(study: Study, arm: str) -> list[Budget]:
    """An arm's own budget, then those of study.within_steps; those of study.within_seconds for an arm that has a
    budget in seconds itself, whose evaluations are as close as these need."""
    config = next(run.config.budget for run in study.runs if run.arm == arm)
    if config.seconds is not None:
        name = f"{config.seconds:,.5g} s"
    elif config.steps is not None:
        name = f"{config.steps:,} steps"
    else:
        name = "the whole budget" if config.epochs is None else f"{config.epochs:g} epochs"
    found = [Budget(name=name, stem="", loss=lambda one: one.best_loss, steps=lambda one: one.steps)]
    if config.seconds is None:
        return found + [_within_steps(steps) for steps in study.settings.within_steps]
    return found + [_within_seconds(seconds) for seconds in study.settings.within_seconds]


def _within_steps(steps: int) -> Budget:
    return Budget(
        name=f"{steps:,} steps",
        stem=f"within_{steps}_steps",
        loss=lambda one: one.within[f"best_loss_within_{steps}_steps"],
        steps=lambda one: min(one.steps, steps),
    )


def _within_seconds(seconds: float) -> Budget:
    return Budget(
        name=f"{seconds:,.5g} s",
        stem=f"within_{seconds:g}_seconds",
        loss=lambda one: one.within[f"best_loss_within_{seconds:g}_seconds"],
        steps=lambda one: one.within[f"steps_within_{seconds:g}_seconds"],
    )
