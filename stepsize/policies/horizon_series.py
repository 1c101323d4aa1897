"""Consecutive measurements from one snapshot, pooled into one α_K with an error bar."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from stepsize.estimate import Estimate, Outcome, delta_method_variance
from stepsize.policies.few_rows import ENOUGH_ROWS
from stepsize.pooling import COUNTED


@dataclass(kw_only=True)
class HorizonSeries:
    """The measurements after steps `first` to `last` from the snapshot of `since`, and the mean rate of those steps."""

    since: int
    first: int
    last: int
    rate: float
    taken: int = 0
    nonfinite: int = 0
    rows: int = 0
    pairs: list[list[float]] = field(default_factory=list)
    """Slope, curvature and the second moments of each that counted."""

    def add(self, estimate: Estimate) -> None:
        """Take in one estimate, whatever its outcome."""
        self.taken += 1
        self.nonfinite += estimate.outcome is Outcome.NONFINITE
        if estimate.outcome in COUNTED and estimate.slope is not None and estimate.curvature is not None:
            variances = (estimate.slope_variance, estimate.curvature_variance, estimate.covariance)
            self.rows += estimate.rows
            self.pairs.append([estimate.slope, estimate.curvature, *(v or 0.0 for v in variances)])

    @property
    def complete(self) -> bool:
        """Whether every measurement has been told of."""
        return self.taken > self.last - self.first

    def pooled(self) -> tuple[float, float] | None:
        """α_K and its variance, slopes and curvatures pooled; None where nothing counted."""
        if not self.pairs:
            return None
        n = len(self.pairs)
        slope, curvature, *within = (math.fsum(column) / n for column in zip(*self.pairs, strict=True))
        relative = -slope / curvature
        variance = delta_method_variance(relative, curvature, *(value / n for value in within))
        if self.rows < ENOUGH_ROWS * n and n > 1:
            between = math.fsum((s + relative * q) ** 2 for s, q, *_ in self.pairs) / (n * (n - 1)) / curvature**2
            variance = max(variance, between)
        return relative, variance
