"""A curve over a run of any length, in bounded memory."""

from __future__ import annotations

import math
import statistics

POINTS = 360
"""At most this many points of a curve are kept; beyond it, neighbors are averaged."""


class Curve:
    """A curve over steps of any length in bounded memory: each point is the mean of `stride` steps."""

    def __init__(self, points: int = POINTS) -> None:
        self._limit = points
        self._stride = 1
        self._steps: list[int] = []
        self._values: list[float] = []
        self._pending: list[float] = []

    def add(self, step: int, value: float) -> None:
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self._steps.append(step)
        self._values.append(statistics.fmean(self._pending))
        self._pending.clear()
        if len(self._values) == self._limit:
            self._steps = self._steps[1::2]
            self._values = [(a + b) / 2 for a, b in zip(self._values[::2], self._values[1::2], strict=True)]
            self._stride *= 2

    def points(self) -> list[tuple[int, float | None]]:
        """(step, mean value) of every point, None if it is not finite (JSON has no NaN)."""
        return [(step, finite(value)) for step, value in zip(self._steps, self._values, strict=True)]


def finite(value: float) -> float | None:
    """The value, or None if JSON could not carry it."""
    return value if math.isfinite(value) else None
