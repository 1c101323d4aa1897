"""What is measured along one direction, and how the measured numbers become an estimate.

Between the two lies the way from the device to the host, which is the worker's: `measure` returns tensors and
waits for nothing, `estimate_from` takes the same numbers as floats.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from stepsize.estimate import Estimate, Outcome, StepSizeNumbers, solve
from stepsize.losses import Loss
from stepsize.measuring.comparison import diagnose, diagnostics_from, quadratic_form
from stepsize.measuring.curvature import SUMMARY, logits_along, relative_rounding, row_forms, summarize
from stepsize.measuring.direction import Batch, Direction
from stepsize.measuring.handoff import Quantities
from stepsize.measuring.passes import ForwardContext, coarsest_eps
from stepsize.measuring.self_check import SelfCheck
from stepsize.measuring.shares import share_of
from stepsize.measuring.tables import OVERFLOW, looks_up_others
from stepsize.options import MeasuringOptions

LOOK_UPS = "look-ups of "
"""Begins the name of what tells whether the look-ups of one table, which follows, were the same."""


def measure(
    model: nn.Module,
    loss: Loss,
    direction: Direction,
    batches: tuple[Batch, ...],
    options: MeasuringOptions,
    *,
    context: ForwardContext = nullcontext,
    check: SelfCheck | None = None,
    shared: bool = False,
) -> Quantities:
    """Everything `options` asks for along `direction`; `batches` is B1 and, where it is given, B2.

    With a `check`, its comparison is made on B1's pass, for which the host waits. If the batches are `shared` among
    processes, `share_of` takes the place of `summarize`.

    `summarize` of "b1", "b2" and "group.0", ...; "operator", dᵀCd of another matrix; "diagnostics";
    "look-ups of TABLE", a number a look-up that is not 0 where it was for other rows than before the step, of tables
    whose ids the host could not see; "no room in TABLE ...", likewise where there were more different rows than room.
    """

    def along(index: int, group: int | None = None) -> Tensor:
        batch = batches[index]
        z, tangent = logits_along(model, direction, batch, index=index, group=group, context=context)
        eps = coarsest_eps(z, context)
        live, apart = direction.optimized, direction.loss_apart
        if shared:
            return share_of(loss, z, tangent, batch.targets, eps=eps, direction=direction, live=live, apart=apart)
        rounding = relative_rounding(direction, eps)
        forms = row_forms(loss, z, tangent, batch.targets, eps=eps, rounding=rounding, live=live, apart=apart)
        if index == 0 and group is None and check is not None:
            check.compare(forms)
        return summarize(forms)

    measured = {"b1": along(0)}
    if options.needs_b2:
        measured["b2"] = along(1)
    if options.per_group:
        measured |= {f"group.{group}": along(0, group) for group in sorted(set(direction.groups.values()))}
    if options.curvature != "ggn":
        form = quadratic_form(options.curvature, model, loss, direction, batches[0], context=context)
        measured["operator"] = form.double().reshape(1)
    if options.diagnostics == "full":
        measured["diagnostics"] = diagnose(model, loss, direction, batches, context=context)
    for table, differing in direction.differing.items():
        if differing:
            measured[f"{LOOK_UPS}{table}"] = torch.stack(differing).double()
    for index, tables in enumerate(direction.lookups):
        for table, calls in tables.items():
            overflow = [call.overflow for call in calls if call.overflow is not None]
            if overflow:
                measured[f"{OVERFLOW}{table} by batch {index}"] = torch.stack(overflow).double()
    return measured


def estimate_from(
    measured: dict[str, list[float]],
    options: MeasuringOptions,
    *,
    step: int,
    learning_rates: list[float],
    age: int = 0,
    horizon: int = 1,
) -> Estimate:
    """The estimate that the quantities of `measure`, now floats, amount to; `learning_rates` has one rate a group.

    `absolute` is relative times the first group's rate, and in `groups` times each group's own.

    Raises: MeasurementError where a pass looked up other rows than were kept before the step.
    """
    for name, values in measured.items():
        if name.startswith(LOOK_UPS) and any(values):
            position = next(position for position, differs in enumerate(values) if differs)
            raise looks_up_others(name.removeprefix(LOOK_UPS), position)
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
        horizon=horizon,
        loss=_known(b1["loss"]),
        slope_variance=_known(b1["slope_variance"]),
        curvature_variance=_known(b1["curvature_variance"]),
        covariance=_known(b1["covariance"]),
        biased=biased,
        hybrid=hybrid,
        groups=tuple(groups) if options.per_group else None,
        diagnostics=diagnostics_from(measured["diagnostics"]) if "diagnostics" in measured else None,
    )


def dropped(*, step: int, learning_rate: float, horizon: int = 1) -> Estimate:
    """The estimate that was not made, because the worker was busy."""
    nothing = StepSizeNumbers(slope=None, curvature=None, relative=None, absolute=None, standard_error=None)
    return Estimate(
        **vars(nothing),
        step=step,
        age=0,
        outcome=Outcome.DROPPED,
        learning_rate=learning_rate,
        rows=0,
        horizon=horizon,
    )


def _named(values: list[float]) -> dict[str, float]:
    return dict(zip(SUMMARY, values, strict=True))


def _solvable(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if key not in ("rows", "loss")}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
