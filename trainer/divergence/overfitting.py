"""A run that evaluates worse and worse: told once, by a rule that knows how far an evaluation scatters."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

LEAST_EVALUATIONS = 5
"""Fewer say nothing of how they scatter."""
IN_A_ROW = 3
"""So many of the latest evaluations have to be worse."""
LEAST_RISE = 0.003
"""Share of the best loss that a rise has to have, however little evaluations scatter."""
DEVIATIONS = 5.0
KEPT = 50
"""Evaluations that the scatter is taken from."""


@dataclass(frozen=True, kw_only=True)
class Overfitting:
    """What is to be told."""

    step: int
    loss: float
    best_step: int
    best_loss: float

    def __str__(self) -> str:
        return (
            f"validation loss rises: {self.loss:.5f} at step {self.step:,}, after {self.best_loss:.5f} at step "
            f"{self.best_step:,}, its best"
        )


class ValidationTrend:
    """Follows the validation loss of a run.

    It is worse and worse where each of the latest 3 evaluations lies above the lowest mean that 3 in a row have had by
    more than 5 deviations and by more than 0.3 %, and the latest is the highest of the three. (A best one of dozens
    would lie two deviations too low by chance.) The deviation of one evaluation is that of second
    differences over √6, which no trend enters, taken from their median size: 1.4826 · median |v₊ − 2v + v₋| / √6, of
    the latest 50 evaluations, 5 at least. It is told once for each best loss.
    """

    def __init__(self) -> None:
        self._losses: list[float] = []
        self.best: tuple[int, float] | None = None
        """Step and loss of the best evaluation."""
        self._told = False
        self._lowest: float | None = None  # mean of IN_A_ROW losses in a row

    def add(self, step: int, loss: float) -> Overfitting | None:
        """Take in an evaluation after `step` steps; what is to be told of it, if anything is."""
        if not math.isfinite(loss):
            return None
        self._losses = [*self._losses, loss][-KEPT:]
        if len(self._losses) >= IN_A_ROW:
            mean = statistics.fmean(self._losses[-IN_A_ROW:])
            self._lowest = mean if self._lowest is None else min(self._lowest, mean)
        if self.best is None or loss < self.best[1]:
            self.best, self._told = (step, loss), False
        if self._told or not self.worse:
            return None
        self._told = True
        return Overfitting(step=step, loss=loss, best_step=self.best[0], best_loss=self.best[1])

    @property
    def worse(self) -> bool:
        """Whether the latest evaluations are worse than the best one beyond doubt."""
        if len(self._losses) < LEAST_EVALUATIONS or self._lowest is None:
            return False
        latest = self._losses[-IN_A_ROW:]
        bar = self._lowest + max(DEVIATIONS * self._deviation(), LEAST_RISE * abs(self._lowest))
        return min(latest) > bar and latest[-1] == max(latest)

    @property
    def left_behind(self) -> bool:
        """Whether the latest evaluation, by itself, is worse than the best one by more than evaluations scatter.

        How far that is, fewer than 5 do not tell, and 0.3 % is enough then.
        """
        if self.best is None:
            return False
        scatter = DEVIATIONS * self._deviation() if len(self._losses) >= LEAST_EVALUATIONS else 0.0
        return self._losses[-1] - self.best[1] > max(scatter, LEAST_RISE * abs(self.best[1]))

    @property
    def latest(self) -> float:
        """Loss of the latest evaluation, once there is one."""
        return self._losses[-1]

    def _deviation(self) -> float:
        v = self._losses
        curved = [abs(after - 2 * here + before) for before, here, after in zip(v, v[1:], v[2:], strict=False)]
        return 1.4826 * statistics.median(curved) / math.sqrt(6)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "losses": list(self._losses),
            "best": None if self.best is None else list(self.best),
            "told": self._told,
            "lowest": self._lowest,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None, of a run older than them, begins anew."""
        self.__init__()
        if state is not None:
            self._losses, self._told, self._lowest = list(state["losses"]), state["told"], state["lowest"]
            self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
