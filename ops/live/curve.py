"""A curve over a run of any length, in bounded memory."""

from __future__ import annotations

import math
import statistics

POINTS = 360
"""At most this many points of a curve are kept; beyond it, neighbors are averaged."""


class Curve:
    """A curve over steps of any length in bounded memory: each point is the mean of `stride` steps or more."""

    def __init__(self, points: int = POINTS) -> None:
        self._limit = points
        self._stride = 1
        self._steps: list[int] = []
        self._values: list[float] = []
        self._counts: list[int] = []
        """How many steps each point is the mean of."""
        self._pending: list[float] = []
        self._pending_counts: list[int] = []
        self._pending_count = 0

    def expect(self, steps: int) -> None:
        """Makes every point of a curve that is still empty the mean of as many steps as it will be after `steps`."""
        while steps // self._stride >= self._limit:
            self._stride *= 2

    def add(self, step: int, value: float, *, steps: int = 1) -> None:
        """The value of `step`, or the mean of `steps` steps up to it."""
        self._pending.append(value)
        self._pending_counts.append(steps)
        self._pending_count += steps
        count = self._pending_count
        if count < self._stride:
            return
        self._steps.append(step)
        self._values.append(_mean(self._pending, self._pending_counts))
        self._counts.append(count)
        self._pending.clear()
        self._pending_counts.clear()
        self._pending_count = 0
        if len(self._values) == self._limit:
            pairs = range(0, self._limit, 2)
            self._steps = self._steps[1::2]
            self._values = [_mean(self._values[i : i + 2], self._counts[i : i + 2]) for i in pairs]
            self._counts = [sum(self._counts[i : i + 2]) for i in pairs]
            self._stride *= 2

    def points(self) -> list[tuple[int, float | None]]:
        """(step, mean value) of every point, None if it is not finite (JSON has no NaN)."""
        return [(step, finite(value)) for step, value in zip(self._steps, self._values, strict=True)]


def _mean(values: list[float], counts: list[int]) -> float:
    return statistics.fmean(values, None if min(counts) == max(counts) else counts)


def finite(value: float) -> float | None:
    """The value, or None if JSON could not carry it."""
    return value if math.isfinite(value) else None
