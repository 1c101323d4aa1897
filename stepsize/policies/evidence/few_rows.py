"""Estimates from batches of a few rows, put together until they have an error bar that can be trusted."""

from __future__ import annotations

import math
from typing import Any

from stepsize.estimate import Estimate
from stepsize.pooling import RateMoments, per_rate, rate_moments

ENOUGH_ROWS = 16
"""Rows that give an estimate an error bar of its own, itself known to a third."""
BLOCK_ROWS, BLOCK_STEPS = 32, 8
"""Least rows and steps of a block."""


def steps_a_block(rows: int) -> int:
    """How many steps of so many probe rows make one estimate."""
    return 1 if rows >= ENOUGH_ROWS else max(BLOCK_STEPS, math.ceil(BLOCK_ROWS / max(rows, 1)))


class FewRows:
    """Makes one estimate of the steps of a block if each has too few rows for its spread to mean anything.

    One row has no spread, and two have by chance a spread near zero that would outweigh everything else. So the
    slopes and curvatures of consecutive steps, per unit of learning rate, are averaged, and their errors taken from
    how they scatter about their means. Steps of `ENOUGH_ROWS` or more pass as they are.
    """

    def __init__(self) -> None:
        self._pairs: list[list[float]] = []

    def add(self, estimate: Estimate) -> RateMoments | None:
        """What `estimate` completes: itself, or a block; None for a block still open or no number."""
        if estimate.rows >= ENOUGH_ROWS:
            return rate_moments(estimate)
        pair = per_rate(estimate)
        if pair is None:
            return None
        self._pairs.append(list(pair))
        if len(self._pairs) < steps_a_block(estimate.rows):
            return None
        pairs, self._pairs = self._pairs, []
        return _block(pairs)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"pairs": [list(pair) for pair in self._pairs]}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None, of a run older than them, begins anew."""
        self._pairs = [] if state is None else [list(pair) for pair in state["pairs"]]


def _block(pairs: list[list[float]]) -> RateMoments:
    count = len(pairs)
    slope, curvature = (math.fsum(column) / count for column in zip(*pairs, strict=True))
    apart = [(s - slope, c - curvature) for s, c in pairs]
    scale = 1 / (count * (count - 1))
    return RateMoments(
        slope,
        curvature,
        scale * math.fsum(s * s for s, _ in apart),
        scale * math.fsum(c * c for _, c in apart),
        scale * math.fsum(s * c for s, c in apart),
    )
