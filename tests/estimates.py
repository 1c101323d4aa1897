"""Made-up estimates for the tests of policies."""

from __future__ import annotations

from typing import Any

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.cadence import Cadence
from stepsize.policies.rates import Bounds

SILENT = (Outcome.FLAT, Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED)


def estimate(
    step: int,
    absolute: float = 0.0,
    *,
    error: float = 0.0,
    rate: float = 1e-3,
    outcome: Outcome | None = None,
    age: int = 0,
    curvature: float = 2.0,
) -> Estimate:
    """An estimate of a step at `rate` that suggests the rate `absolute` ± its error, all the noise in its slope.

    `curvature` is per rate squared.
    """
    outcome = outcome or (Outcome.OK if absolute > 0 else Outcome.ASCENT)
    number = outcome in (Outcome.OK, Outcome.ASCENT)
    return Estimate(
        step=step,
        age=age,
        outcome=outcome,
        learning_rate=rate,
        rows=256,
        slope=-absolute * curvature * rate if number else None,
        curvature=curvature * rate**2 if number else None,
        relative=absolute / rate if number else None,
        absolute=absolute if number else None,
        standard_error=error / rate if number else None,
        slope_variance=(error * curvature * rate) ** 2 if number else None,
        curvature_variance=0.0 if number else None,
        covariance=0.0 if number else None,
    )


def auto(
    guess: float = 1e-3,
    *,
    start: int = 0,
    low: float = 1e-8,
    high: float = 1.0,
    drift: float = 0.02,
    clip: float = 1.25,
    warmup: int = 0,
    cooldown: tuple[int, int] | None = None,
) -> AutoSingle:
    return AutoSingle(
        guess=guess,
        cadence=Cadence(interval=100, count=10, start=start),
        bounds=Bounds(low=low, high=high),
        drift=drift,
        clip=clip,
        warmup=warmup,
        cooldown=cooldown,
    )


def following(rate: float = 1e-2, **options: Any) -> AutoSingle:
    """An `auto_single` that found `rate` from step 0's estimate, one tenth of it its error bar."""
    policy = auto(**options)
    assert policy.observe(estimate(0, rate, error=0.1 * rate, rate=1e-6)) is not None
    return policy
