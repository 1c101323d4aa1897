"""α* over the run: the one pooled number, and the rate it suggests in bins of steps."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ops.live.curve import finite

BINS = 36
BIN_ESTIMATES = 12
LEAST_ESTIMATES = 10
"""Fewer estimates of α* than this scatter too much to show a number."""


@dataclass(frozen=True, kw_only=True)
class AlphaFactor:
    """What α* says in one number: how many times as long the steps should have been, pooled over many estimates."""

    estimates: int
    """How many went into it."""
    factor: float | None
    """None below `LEAST_ESTIMATES`, or if their curvature sums to nothing or one or two have most of it."""
    standard_error: float | None
    """Of `factor`."""

    @property
    def margin(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.standard_error is None else 1.96 * self.standard_error


def alpha_bins(alphas: Sequence[tuple[int, float, float, float]], bins: int = BINS) -> list[dict[str, Any]]:
    """The rate that α* suggests along the run, in about `bins` bins of nearly equal count; none before the tenth.

    Takes (step, suggested rate, slope/η, curvature/η²) of every estimate, η the learning rate. A bin has the ratio of
    averages (`pooled`, None if it has no finite one), the quartiles, and whether measuring paused before it
    (`after_gap`).
    """
    if len(alphas) < LEAST_ESTIMATES:
        return []
    cuts = [0, *measuring_gaps([step for step, *_ in alphas]), len(alphas)]
    result = []
    for start, stop in itertools.pairwise(cuts):
        pieces = max(min(round(bins * (stop - start) / len(alphas)), (stop - start) // BIN_ESTIMATES), 1)
        edges = [start + piece * (stop - start) // pieces for piece in range(pieces + 1)]
        gap = start > 0
        for first, last in itertools.pairwise(edges):
            chosen = alphas[first:last]
            if len(chosen) < 4:
                continue
            lower, _, upper = statistics.quantiles((estimate[1] for estimate in chosen), n=4, method="inclusive")
            slope, curvature = sum(estimate[2] for estimate in chosen), sum(estimate[3] for estimate in chosen)
            pooled = finite(-slope / curvature) if curvature > 0 else None
            middle = chosen[len(chosen) // 2][0]
            result.append({"step": middle, "pooled": pooled, "lower": lower, "upper": upper, "after_gap": gap})
            gap = False
    return result


def measuring_gaps(steps: Sequence[float], last_steps: Sequence[float] | None = None) -> list[int]:
    """Indices of the estimates before which measuring paused: much longer than it usually does between two.

    `steps` ascend; where an estimate stands for later ones as well, those reach to its `last_steps`. If estimates come
    in bursts, the usual pause between bursts does not count.
    """
    pauses = [after - before for before, after in zip(last_steps or steps, steps[1:], strict=False)]
    if len(pauses) < 2:
        return []
    usual = statistics.median(pauses)
    longer = [pause for pause in pauses if pause > 4 * usual]
    span = steps[-1] - steps[0]
    in_bursts = len(longer) >= 3 and sum(longer) > span / 2
    least = 3 * statistics.median(longer) if in_bursts else max(5 * usual, span / BINS)
    return [index for index, pause in enumerate(pauses, 1) if pause > least]
