"""What the best validation loss of an arm's runs goes with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.records import Column
from trainer.study.comparison.budgets import budgets_of
from trainer.study.definition import Study
from trainer.study.results import Result, RunOutcome


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How the best validation loss of an arm's runs goes with one number of theirs."""

    arm: str
    budget: str
    """What the loss is the best within."""
    number: str
    runs: int
    r: float
    p: float


def correlations(study: Study, results: Sequence[Result]) -> list[Correlation]:
    """Pearson's r of the best validation loss with every varied number except the learning rate, whose effect is not
    linear, and with the steps completed; within each of the arm's budgets (`budgets_of`)."""
    found = []
    for arm, keys in study.varied.items():
        for budget in budgets_of(study, arm):
            chosen = [one for one in results if one.run.arm == arm and one.outcome is RunOutcome.FINISHED]
            chosen = [one for one in chosen if math.isfinite(budget.loss(one))]
            numbers = {
                key: [one.run.values[key] for one in chosen]
                for key in keys
                if key != "optimizer.lr" and all(_is_number(one.run.values[key]) for one in chosen)
            }
            numbers["steps"] = [budget.steps(one) for one in chosen]
            losses = np.array([budget.loss(one) for one in chosen])
            for name, values in numbers.items():
                both = pearson(np.array(values, dtype=np.float64), losses)
                if both is not None:
                    found.append(
                        Correlation(arm=arm, budget=budget.name, number=name, runs=len(chosen), r=both[0], p=both[1])
                    )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def pearson(x: Column, y: Column) -> tuple[float, float] | None:
    """Pearson's r and its two-sided p under normality; None for fewer than 3 pairs or if one does not vary.

    With r = sin φ the density of r without correlation is proportional to cosⁿ⁻³ φ in φ, so that
    p = ∫ cosⁿ⁻³ from arcsin |r| to π/2, over the same from 0.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))
    nodes, weights = np.polynomial.legendre.leggauss(256)

    def tail(start: float) -> float:
        half = (math.pi / 2 - start) / 2
        return float(half * (weights @ np.cos(start + half * (nodes + 1.0)) ** (len(x) - 3)))

    return r, min(1.0, tail(math.asin(abs(r))) / tail(0.0))
