"""Consecutive measurements from one snapshot, pooled into one α_K with an error bar."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from stepsize.estimate import Estimate, Outcome, delta_method_variance
from stepsize.policies.evidence import ENOUGH_ROWS
from stepsize.pooling import COUNTED


@dataclass(kw_only=True)
class HorizonSeries:
    """Measurements after steps `first` to `last`, since the snapshot of step `since`.

    Slopes and curvatures are averaged, not their ratios, and all batches count alike: a batch without a positive label
    has a small α_K with a falsely small variance, and weights by it would bias the average.
    """

    since: int
    first: int
    last: int
    mean_rate: float
    """Of the steps from `since` to `first`."""
    rate: float | None = None
    """The rate, less warm-up, when the series began; None in the states of versions that didn't keep it."""
    told: int = 0
    """Measurements whose outcome is known."""
    nonfinite: int = 0
    rows: int = 0
    """Probed by those that count."""
    loss: float = 0.0
    """On the rows that those probed, at the snapshot; summed over them."""
    moments: list[list[float]] = field(default_factory=list)
    """Of each that counts: slope, curvature, and the variances and covariance of these two means."""

    def add(self, estimate: Estimate) -> None:
        """Take in one estimate, whatever its outcome."""
        self.told += 1
        self.nonfinite += estimate.outcome is Outcome.NONFINITE
        if estimate.outcome in COUNTED and estimate.slope is not None and estimate.curvature is not None:
            spread = (estimate.slope_variance, estimate.curvature_variance, estimate.covariance)
            self.rows += estimate.rows
            self.loss += estimate.loss or 0.0
            self.moments.append([estimate.slope, estimate.curvature, *(value or 0.0 for value in spread)])

    @property
    def complete(self) -> bool:
        """Whether there is nothing more to come."""
        return self.told > self.last - self.first

    @property
    def horizon(self) -> int:
        """K of the first measurement."""
        return self.first - self.since

    def pooled(self, expected: float) -> tuple[float, float] | None:
        """α_K and the variance that it would have were the true one `expected`; None where no measurement counts.

        The variance of what was found would make a wild estimate count less for being wild, and so bias what many of
        them amount to. By the delta method, from the spread of the rows within each batch; or, where batches have too
        few rows for that, from how the batches scatter, if that is more: a single such batch tells nothing.
        """
        if not self.moments:
            return None
        count = len(self.moments)
        slope, curvature, *within = (math.fsum(column) / count for column in zip(*self.moments, strict=True))
        relative = -slope / curvature
        variance = delta_method_variance(expected, curvature, *(value / count for value in within))
        if self.rows < ENOUGH_ROWS * count:
            if count == 1:
                return None
            scatter = math.fsum((s + relative * c) ** 2 for s, c, *_ in self.moments)
            variance = max(variance, scatter / (count * (count - 1)) / curvature**2)
        return relative, variance

    @property
    def mean_loss(self) -> float:
        """Of the measurements that count, of which there must be one."""
        return self.loss / len(self.moments)

    @property
    def mean_curvature(self) -> float:
        """Of the same."""
        return math.fsum(curvature for _, curvature, *_ in self.moments) / len(self.moments)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values: the keyword arguments that make it again."""
        return asdict(self)
