"""What is measured, and by which method: the choices of a caller."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from stepsize.errors import MeasurementError

Estimator = Literal["unbiased", "biased", "hybrid"]
Method = Literal["jvp", "secant"]
Diagnosis = Literal["none", "full"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; each item beyond the unbiased estimate says what it costs."""

    estimators: Collection[Estimator] = ("unbiased",)
    """"biased" and "hybrid" cost one more pass, over B2, between them."""
    method: Method = "jvp"
    """"secant" takes the logits' difference between θ1 and θ0 for Jd: two forward passes (one, where the caller
    has B1's logits at θ1 anyway), no copy of θ0, no forward-mode formulas. Its error is first order in the step.
    On real click rows it lay within 2 % of a standard error of the JVP's α* up to a rate of 1e-3 and within 4 % at
    1e-2, but that error is a bias, not noise: pooled over 300 steps it read 0 % less at 1e-5, 1 % at 1e-4, 5 % at
    1e-3 and 65 % at 1e-2 (tests/bench/bench_cheaper.py). So the JVP is the default, and the secant is as good where
    the rate is at most a tenth of what α* says or where forward mode has no formula."""
    curvature: str = "ggn"
    """"hessian", "fisher" (Monte Carlo), "empirical_fisher" or the name of another curvlinops operator cost a dense
    copy of the model and one product with that operator; the curvature then has no error bar."""
    diagnostics: Diagnosis = "none"
    """"full" adds norms, cosines and losses: one forward and backward over B1, and whole tables instead of rows."""
    per_group: bool = False
    """Each parameter group's own α*, along its own part of d: one more pass a group."""

    def __post_init__(self) -> None:
        unknown = set(self.estimators) - set(get_args(Estimator))
        if unknown:
            raise MeasurementError(f"estimators: {sorted(unknown)[0]!r} is unknown; choose unbiased, biased, hybrid")
        for name, allowed in (("method", get_args(Method)), ("diagnostics", get_args(Diagnosis))):
            if getattr(self, name) not in allowed:
                raise MeasurementError(f"{name}: {getattr(self, name)!r} is unknown; choose {' or '.join(allowed)}")
        if self.method == "secant" and (self.per_group or self.needs_whole or self.needs_b2):
            raise MeasurementError(
                'method "secant" keeps no θ0, so it has the unbiased GGN estimate alone; use "jvp" for the others'
            )

    @property
    def needs_b2(self) -> bool:
        """Whether a second pass, over B2, is part of it."""
        return not {"biased", "hybrid"}.isdisjoint(self.estimators)

    @property
    def needs_whole(self) -> bool:
        """Whether tables must be kept whole."""
        return self.diagnostics == "full" or self.curvature != "ggn"
