"""Many noisy estimates of α* pooled into one rate with an error bar: ratio of averages, or median."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stepsize.estimate import Estimate, Outcome, delta_method_variance

COUNTED = frozenset({Outcome.OK, Outcome.ASCENT})
"""Outcomes that carry a number; a negative α* is as good an estimate as a positive one."""
LEAST_CURVATURES = 2.0
"""With fewer, one estimate has more than half of all curvature, so that one or two have most of it."""
LEAST_COUNT = 3.0
"""Of fewer estimates one or two always have most of the curvature, which says nothing of them."""


@dataclass(frozen=True, kw_only=True)
class PooledRate:
    """A learning rate from many estimates, −Σ w·(slope/η) / Σ w·(curvature/η²).

    Slope and curvature are first put per unit of learning rate η, so that steps of different rates
    can be pooled. The ratio of averages is consistent; an average of the ratios is not, because
    noise in the denominator bends it.
    """

    rate: float
    """The pooled rate that α* suggests, α* times the rate of its step; negative if the steps climbed on average."""
    standard_error: float | None
    """Of `rate`, from the scatter of the estimates about it; None with fewer than two."""
    effective_count: float
    """How many equally weighted estimates the weights are worth: (Σw)² / Σw²."""
    curvature_count: float
    """How many estimates of equal curvature the curvatures are worth: (Σwc)² / Σw²c². Below 2 one or two have
    most of the curvature and make the rate, and `standard_error`, of how the others scatter about it, knows nothing."""
    slope: float
    """Average slope per unit of learning rate (loss per η)."""
    curvature: float
    """Average curvature per unit of learning rate squared (loss per η²)."""

    @property
    def borne(self) -> bool:
        """Whether many make the rate; False where one or two estimates have most of the curvature, as wild steps do.

        That is where the curvatures are worth fewer than `LEAST_CURVATURES` estimates. Of fewer than `LEAST_COUNT` in
        all it cannot be told, and they count as borne.
        """
        return self.effective_count < LEAST_COUNT or self.curvature_count >= LEAST_CURVATURES

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval by the normal approximation; (−∞, ∞) without a standard error."""
        if self.standard_error is None:
            return -math.inf, math.inf
        half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * self.standard_error
        return self.rate - half, self.rate + half


class RateMoments(NamedTuple):
    """Slope and curvature of one step per unit of learning rate η, with the second moments of their means."""

    slope: float
    """dᵀg / η."""
    curvature: float
    """dᵀGd / η²."""
    slope_variance: float
    curvature_variance: float
    covariance: float

    def variance_of(self, rate: float) -> float:
        """Variance of this step's −slope/curvature were the true ratio `rate` (delta method)."""
        return delta_method_variance(
            rate, self.curvature, self.slope_variance, self.curvature_variance, self.covariance
        )


def per_rate(estimate: Estimate) -> tuple[float, float] | None:
    """(slope/η, curvature/η²) of one estimate; None if its outcome carries no number."""
    if estimate.outcome not in COUNTED or estimate.slope is None or estimate.curvature is None:
        return None
    if estimate.learning_rate <= 0:
        return None
    return estimate.slope / estimate.learning_rate, estimate.curvature / estimate.learning_rate**2


def rate_moments(estimate: Estimate) -> RateMoments | None:
    """The estimate per unit of learning rate; None if it carries no number or no error bar (a single row)."""
    pair = per_rate(estimate)
    if pair is None or estimate.slope_variance is None:
        return None
    if estimate.curvature_variance is None or estimate.covariance is None:
        return None
    rate = estimate.learning_rate
    return RateMoments(
        *pair, estimate.slope_variance / rate**2, estimate.curvature_variance / rate**4, estimate.covariance / rate**3
    )


def pool(pairs: Sequence[tuple[float, float]]) -> PooledRate | None:
    """The ratio of plain averages of (slope/η, curvature/η²) pairs; None if their curvature sums to zero.

    Of pairs (slope, curvature) as they are it is the one factor by which all those steps should have been longer.
    """
    sums = RatioSums(decay=1.0)
    for slope, curvature in pairs:
        sums.add(slope, curvature)
    return sums.pooled()


def median_rate(rates: Sequence[float]) -> float:
    """The median of the rates that single estimates suggest, the midpoint of the two middle ones for an even number.

    Robust against single wild ratios, but biased: the median of ratios is not the ratio of means.
    """
    return statistics.median(rates)


class RatioSums:
    """Running sums for a ratio of exponentially weighted averages and its standard error.

    With weights w_i = decay^(n−i), rate α = −Σ w·s / Σ w·c and residuals r_i = s_i + α·c_i, the delta
    method gives var(α) = Σ w²r² / (Σ w·c)² · m/(m − 1), m the effective count; Σ w²r² expands into
    three sums that decay by decay², so nothing but seven numbers is kept. decay = 1 pools all alike.
    """

    def __init__(self, *, decay: float) -> None:
        self.decay = decay
        self._sums = [0.0] * 7  # Σw, Σws, Σwc, Σw², Σw²s², Σw²sc, Σw²c²

    def add(self, slope: float, curvature: float) -> None:
        """Take in one pair, slope/η and curvature/η²."""
        terms = (1.0, slope, curvature, 1.0, slope * slope, slope * curvature, curvature * curvature)
        for i, term in enumerate(terms):
            keep = self.decay if i < 3 else self.decay**2
            self._sums[i] = keep * self._sums[i] + term

    def pooled(self) -> PooledRate | None:
        """What the pairs so far amount to; None before the first, or if their curvature sums to zero."""
        weight, slope, curvature, weight2, ss, sc, cc = self._sums
        if curvature <= 0:
            return None
        rate = -slope / curvature
        count = weight * weight / weight2
        error = None
        if count > 1 + 1e-9:
            scatter = max(0.0, ss + 2 * rate * sc + rate * rate * cc)
            error = math.sqrt(scatter * count / (count - 1)) / curvature
        return PooledRate(
            rate=rate,
            standard_error=error,
            effective_count=count,
            curvature_count=curvature * curvature / cc if cc > 0 else count,
            slope=slope / weight,
            curvature=curvature / weight,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"decay": self.decay, "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self.decay = float(state["decay"])
        self._sums = [float(value) for value in state["sums"]]


class RateMomentSums:
    """The ratio of sums over steps at unchanged weights, with the error bar that the probed rows give.

    While `RatioSums` learns its error from how estimates scatter, this one adds up the variances that
    each brings along, so that a single estimate already has one.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5

    def add(self, one: RateMoments) -> None:
        """Take in one step."""
        self._sums = [total + value for total, value in zip(self._sums, one, strict=True)]

    def pooled(self) -> tuple[float, float] | None:
        """(rate, its standard error); None before the first step."""
        total = RateMoments(*self._sums)
        if total.curvature <= 0:
            return None
        rate = -total.slope / total.curvature
        return rate, math.sqrt(total.variance_of(rate))

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._sums = [float(value) for value in state["sums"]]
