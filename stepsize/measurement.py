"""What is measured along one direction, and how the measured numbers become an estimate.

Between the two lies the way from the device to the host, which is the worker's: `measure` returns tensors and
waits for nothing, `estimate_from` takes the same numbers as floats.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from stepsize.curvature import MOMENTS, logits_along, moments, row_forms, tangent_rounding
from stepsize.curvlinops_backend import quadratic_form
from stepsize.diagnostics import diagnose, diagnostics_from
from stepsize.direction import Batch, Direction
from stepsize.errors import MeasurementError
from stepsize.estimate import Estimate, Outcome, StepSizeNumbers, solve
from stepsize.handoff import Quantities
from stepsize.losses import Loss
from stepsize.passes import ForwardContext

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


def measure(
    model: nn.Module,
    loss: Loss,
    direction: Direction,
    batches: tuple[Batch, ...],
    options: Options,
    *,
    tables: Collection[str],
    context: ForwardContext = nullcontext,
) -> Quantities:
    """Everything `options` asks for along `direction`; `batches` is B1 and, where it is given, B2.

    `moments` of "b1", "b2" and "group.0", ...; "operator", dᵀCd of another matrix; "diagnostics".
    """

    def probe(index: int, group: int | None = None) -> Tensor:
        batch = batches[index]
        z, tangent = logits_along(model, direction, batch, index=index, tables=tables, group=group, context=context)
        rounding = tangent_rounding(direction, z)
        return moments(row_forms(loss, z, tangent, batch.targets, rounding))

    measured = {"b1": probe(0)}
    if options.needs_b2:
        measured["b2"] = probe(1)
    if options.per_group:
        measured |= {f"group.{group}": probe(0, group) for group in sorted(set(direction.groups.values()))}
    if options.curvature != "ggn":
        form = quadratic_form(options.curvature, model, loss, direction, batches[0], context=context)
        measured["operator"] = form.double().reshape(1)
    if options.diagnostics == "full":
        measured["diagnostics"] = diagnose(model, loss, direction, batches, tables=tables, context=context)
    return measured


def estimate_from(
    measured: dict[str, list[float]],
    options: Options,
    *,
    step: int,
    learning_rates: list[float],
    age: int = 0,
) -> Estimate:
    """The estimate that the quantities of `measure`, now floats, amount to; `learning_rates` has one rate a group.

    `absolute` is relative times the first group's rate, and in `groups` times each group's own.
    """
    rate = learning_rates[0]
    b1 = _named(measured["b1"])
    if "operator" in measured:
        # Another matrix's form comes as one number: no spread over rows, no bound of its rounding.
        b1 |= {"curvature": measured["operator"][0], "curvature_variance": math.nan, "covariance": math.nan}
    outcome, numbers = solve(learning_rate=rate, **_solvable(b1))
    biased = hybrid = None
    if "b2" in measured:
        b2 = _named(measured["b2"])
        # B1 and B2 are independent, so a slope of one and a curvature of the other do not vary together.
        mixed = _solvable(b2) | {"slope": b1["slope"], "slope_variance": b1["slope_variance"], "covariance": 0.0}
        biased = solve(learning_rate=rate, **_solvable(b2))[1] if "biased" in options.estimators else None
        hybrid = solve(learning_rate=rate, **mixed)[1] if "hybrid" in options.estimators else None
    groups = [
        solve(learning_rate=learning_rates[int(name.removeprefix("group."))], **_solvable(_named(values)))[1]
        for name, values in measured.items()
        if name.startswith("group.")
    ]
    return Estimate(
        **vars(numbers),
        step=step,
        age=age,
        outcome=outcome,
        learning_rate=rate,
        rows=int(b1["rows"]),
        loss=_known(b1["loss"]),
        slope_variance=_known(b1["slope_variance"]),
        curvature_variance=_known(b1["curvature_variance"]),
        covariance=_known(b1["covariance"]),
        biased=biased,
        hybrid=hybrid,
        groups=tuple(groups) if options.per_group else None,
        diagnostics=diagnostics_from(measured["diagnostics"]) if "diagnostics" in measured else None,
    )


def dropped(*, step: int, learning_rate: float) -> Estimate:
    """The estimate that was not made, because the worker was busy."""
    nothing = StepSizeNumbers(slope=None, curvature=None, relative=None, absolute=None, standard_error=None)
    return Estimate(**vars(nothing), step=step, age=0, outcome=Outcome.DROPPED, learning_rate=learning_rate, rows=0)


def _named(values: list[float]) -> dict[str, float]:
    return dict(zip(MOMENTS, values, strict=True))


def _solvable(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if key not in ("rows", "loss")}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
