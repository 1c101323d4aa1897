"""One measurement of the step size α* and what came of it.

α* = −dᵀg / dᵀGd: D. Suckrow, Curvature-Based Step Sizes for Training Deep Neural Networks, BSc thesis, University of
Tübingen, 2025. Slope and curvature from a batch that did not make the step: L. Tatzel, B. Mucsányi, O. Hackel and
P. Hennig, Debiasing Mini-Batch Quadratics for Applications in Deep Learning, ICLR 2025, arXiv 2410.14325.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

STEEP = 0.01
"""A flat step that takes this share of the loss by its slope is not too short a one."""


class Outcome(StrEnum):
    """What came of one estimate; every estimate has exactly one, and each is counted."""

    OK = "ok"
    """Slope negative, curvature positive: α* is positive and finite."""
    ASCENT = "ascent"
    """The direction climbs on the probe batch (dᵀg ≥ 0), so α* ≤ 0."""
    FLAT = "flat"
    """dᵀGd is zero or below the rounding noise of its precision; α* is undefined."""
    NONFINITE = "nonfinite"
    """Logits, slope or curvature are not finite; α* is undefined."""
    STALE = "stale"
    """It arrived more steps after its own step than `max_age` allows."""
    DROPPED = "dropped"
    """Not measured: the worker was still busy with the one before."""


@dataclass(frozen=True, kw_only=True)
class StepSizeNumbers:
    """α* along one direction, from one pair of means.

    `relative` = −slope / curvature (the factor by which the step should have been longer),
    `absolute` = relative · learning_rate, `standard_error` that of `relative` by the delta method.
    All are None if the outcome leaves them undefined.
    """

    slope: float | None
    """dᵀg: mean over rows of the loss's slope along d, in loss per step."""
    curvature: float | None
    """dᵀGd: mean over rows of the curvature along d."""
    relative: float | None
    absolute: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Norms, cosines and losses at θ0; None for what could not be seen."""

    loss_b2: float | None
    """Mean loss on B2, if B2 was given."""
    gradient_norm_b1: float | None
    """‖g1‖, from a backward pass over B1."""
    gradient_norm_b2: float | None
    """‖g2‖ of the gradients that lay in `.grad` after the step, clipped or unscaled as the optimizer saw them."""
    direction_norm: float | None
    """‖d‖ over all parameters, whole tables included."""
    cosine_b1: float | None
    """cos(g1, d)."""
    cosine_b2: float | None
    """cos(g2, d)."""


@dataclass(frozen=True, kw_only=True)
class Estimate(StepSizeNumbers):
    """One α* of one optimizer step, all at θ0, the weights before that step."""

    step: int
    """The optimizer step whose direction was measured, counted from 0."""
    age: int
    """Steps between that one and the one at which the estimate was handed over."""
    outcome: Outcome
    learning_rate: float
    """η of the step that was measured."""
    rows: int
    """Rows of B1 that were probed."""
    horizon: int = 1
    """K, where the displacement over K steps was measured at once, `step` being the last; 1 for a step alone."""
    loss: float | None = None
    """Mean loss on B1 at θ0."""
    slope_variance: float | None = None
    """Variance of the mean slope (not of a single row)."""
    curvature_variance: float | None = None
    covariance: float | None = None
    """Covariance of the mean slope and the mean curvature."""
    biased: StepSizeNumbers | None = None
    """Slope and curvature both from B2; only on request."""
    hybrid: StepSizeNumbers | None = None
    """Slope from B1, curvature from B2; only on request."""
    groups: tuple[StepSizeNumbers, ...] | None = None
    """α* of each of the optimizer's parameter groups along its own part of d; only on request."""
    diagnostics: Diagnostics | None = None

    @property
    def straight(self) -> bool:
        """Of one step, flat although the slope says that it takes a hundredth of the loss or more.

        It is not too short, then: the loss is a straight line along it, as an absolute error is, or cross-entropy
        where logits lie so far apart that the softmax is 0 or 1 and has no curvature left.
        """
        if self.outcome is not Outcome.FLAT or self.horizon > 1 or self.slope is None or self.loss is None:
            return False
        return -self.slope > STEEP * abs(self.loss)


def delta_method_variance(
    relative: float, curvature: float, slope_variance: float, curvature_variance: float, covariance: float
) -> float:
    """Variance of α = −s/c from that of the means s and c, to first order: dα = −(ds + α dc) / c.

    (Var s + α² Var c + 2 α Cov(s, c)) / c², the delta method.
    """
    spread = slope_variance + relative**2 * curvature_variance + 2 * relative * covariance
    return max(spread, 0.0) / curvature**2


def classify(slope: float, curvature: float, curvature_error: float = 0.0) -> Outcome:
    """OK, ASCENT, FLAT or NONFINITE for one pair of means; `curvature_error` bounds the curvature's rounding error.

    A negative curvature (a concave loss) is FLAT too: the quadratic has no minimizer along the direction.
    """
    if not (math.isfinite(slope) and math.isfinite(curvature)):
        return Outcome.NONFINITE
    if curvature <= curvature_error:
        return Outcome.FLAT
    return Outcome.ASCENT if slope >= 0 else Outcome.OK


def solve(
    *,
    slope: float,
    curvature: float,
    learning_rate: float,
    curvature_error: float = 0.0,
    slope_variance: float = math.nan,
    curvature_variance: float = math.nan,
    covariance: float = math.nan,
) -> tuple[Outcome, StepSizeNumbers]:
    """α* of one pair of means with its delta-method standard error; a variance of NaN is one that is not known."""
    outcome = classify(slope, curvature, curvature_error)
    if outcome in (Outcome.NONFINITE, Outcome.FLAT):
        numbers = StepSizeNumbers(
            slope=_finite(slope), curvature=_finite(curvature), relative=None, absolute=None, standard_error=None
        )
        return outcome, numbers
    relative = -slope / curvature
    variance = delta_method_variance(relative, curvature, slope_variance, curvature_variance, covariance)
    numbers = StepSizeNumbers(
        slope=slope,
        curvature=curvature,
        relative=relative,
        absolute=relative * learning_rate,
        standard_error=_finite(math.sqrt(variance)),
    )
    return outcome, numbers


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
