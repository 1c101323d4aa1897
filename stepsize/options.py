"""What is measured, and by which method: the choices of a caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, get_args

from stepsize.errors import MeasurementError

Estimator = Literal["unbiased", "biased", "hybrid"]
Method = Literal["jvp", "secant"]
Precision = Literal["float32", "bfloat16"]
Diagnosis = Literal["none", "full"]


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """What to measure, and at which price; checked once, here.

    Raises: MeasurementError for a value that is unknown or that contradicts another.
    """

    estimators: tuple[Estimator, ...] = ("unbiased",)
    """Which α* to compute. unbiased: slope and curvature from B1, the probe batch; always computed. biased (both
    from B2, the batch trained on) and hybrid (B1's slope, B2's curvature) cost one more pass between them."""
    method: Method = "jvp"
    """jvp: the exact derivative of the logits along the step. secant: their difference before and after it, about
    half the cost (a quarter if the caller has the logits after the step anyway) and no forward-mode formulas; the
    unbiased estimate only. Its error is first order in the step and does not average out: on click rows 1 % at a
    hundredth of the rate that α* names, 5 % at a seventh, 65 % at it."""
    precision: Precision = "float32"
    """float32: the measuring pass runs as training's does, in lower precision only where that has it.
    bfloat16: the measuring pass runs under autocast, at about half the cost if the processor multiplies
    bfloat16 (AVX-512 BF16, AMX, GPUs) and at more if it does not; training stays as it is. The rounding moves
    an estimate by a small part of its standard error (tests/bench/RESULTS.md)."""
    curvature: str = "ggn"
    """Matrix of the curvature. ggn (Gauss-Newton) is what policies use. hessian, fisher (Monte Carlo),
    empirical_fisher or the name of another curvlinops operator cost a dense copy of the model and one product with
    that operator, and have no error bar; for comparison."""
    diagnostics: Diagnosis = "none"
    """full: also losses, norms and cosines of gradients and step, at the cost of a forward and backward pass over
    B1 and a copy of the whole model, tables included."""
    per_group: bool = False
    """Also α* of each of the optimizer's parameter groups along its own part of the step, a pass each."""
    probe_fraction: float = 1.0
    """Share of the probe batch's rows to measure on: the cost falls with it, the variance grows as its inverse."""

    def __post_init__(self) -> None:
        for name in self.estimators:
            if name not in get_args(Estimator):
                raise MeasurementError(f"estimators: {name!r} is unknown; choose from {', '.join(get_args(Estimator))}")
        for name, kind in (("method", Method), ("precision", Precision), ("diagnostics", Diagnosis)):
            if getattr(self, name) not in get_args(kind):
                raise MeasurementError(
                    f"{name}: {getattr(self, name)!r} is unknown; choose {' or '.join(get_args(kind))}"
                )
        share = self.probe_fraction
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
            raise MeasurementError(
                f"probe_fraction: {share!r} is not a share of the probe batch; give one above 0, up to 1"
            )
        if self.method == "secant":
            self._check_secant()

    def _check_secant(self) -> None:
        if self.per_group or self.needs_whole or self.needs_b2:
            raise MeasurementError(
                "method: 'secant' keeps no weights from before the step, so it has the unbiased ggn estimate alone; "
                "use 'jvp' for other estimators, curvatures, diagnostics and groups"
            )
        if self.precision != "float32":
            raise MeasurementError(
                f"precision: {self.precision!r} would round away the difference of logits that the secant is; "
                "use 'float32', or method 'jvp'"
            )

    @property
    def needs_b2(self) -> bool:
        """Whether a second pass, over B2, is part of it."""
        return not {"biased", "hybrid"}.isdisjoint(self.estimators)

    @property
    def needs_whole(self) -> bool:
        """Whether tables must be kept whole."""
        return self.diagnostics == "full" or self.curvature != "ggn"


def chosen(measuring: MeasuringOptions, given: Mapping[str, Any]) -> MeasuringOptions:
    """`measuring` with the fields that are `given` one by one in place of its own.

    Raises: MeasurementError for what is no MeasuringOptions, an unknown field and an unknown value.
    """
    if not isinstance(measuring, MeasuringOptions):
        raise MeasurementError(f"measuring: {measuring!r} is no MeasuringOptions; give one, or its fields one by one")
    names = [field.name for field in fields(MeasuringOptions)]
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            known = f"perhaps {near[0]}" if near else f"there are {', '.join(names)}"
            raise MeasurementError(f"{name}: there is no such option; {known}")
    return replace(measuring, **given)
