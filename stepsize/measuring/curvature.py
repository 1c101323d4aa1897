"""Slope dᵀg and curvature dᵀGd of a batch's mean loss along a step, from one forward-mode pass.

With Jd the logits' directional derivative along d at θ0, row i has slope (∂ℓ_i/∂z)·(Jd)_i and curvature
(Jd)_iᵀ H_ℓ,i (Jd)_i; the means over rows are dᵀg and dᵀGd, G the generalized Gauss-Newton matrix. No backward pass,
no G, no vector of the model's size. Letters: R rows, C logits a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from stepsize.errors import MeasurementError
from stepsize.losses import AlongTangent, Loss, curvature_along
from stepsize.measuring.direction import Batch, Direction
from stepsize.measuring.kept import TensorsApart
from stepsize.measuring.passes import ForwardContext, forward_pass, loss_undisturbed
from stepsize.measuring.tables import Replayer, StandIn, Whole

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True, kw_only=True)
class RowForms:
    """Every row's loss, slope and curvature (R,), and the mean curvature's rounding error, a scalar tensor."""

    loss: Tensor
    slope: Tensor
    curvature: Tensor
    curvature_error: Tensor


def logits_along(
    model: nn.Module,
    direction: Direction,
    batch: Batch,
    *,
    index: int = 0,
    group: int | None = None,
    context: ForwardContext = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Logits z at θ0 and their directional derivative Jd along d, both of the shape the model returns.

    `index` says which of the direction's recorded batches `batch` is, and `group` keeps only the part of d that belongs
    to one of the optimizer's parameter groups. Costs one forward-mode pass, about a forward and a backward; the
    parameters' present values, θ1 and later, are not read.

    Raises: MeasurementError where the tangent is lost on its way or an operation has no forward-mode formula.
    """
    if torch.is_inference_mode_enabled():
        raise MeasurementError("inference mode drops tangents silently; measure outside of torch.inference_mode()")

    def moves(name: str) -> bool:
        return group is None or direction.groups[name] == group

    with torch.no_grad(), fw.dual_level():
        substitutes, tables = dict(direction.constants), direction.survey.tables
        for name, value in direction.values.items():
            whole = fw.make_dual(value, direction.differences[name]) if moves(name) else value
            substitutes[name] = StandIn(name, value, Whole(whole)) if name in tables else whole
        for name, calls in direction.lookups[index].items():
            replayer = Replayer(name, calls, moves(name), direction.differing.setdefault(name, []))
            substitutes[name] = StandIn(name, direction.survey.parameters[name], replayer)
        try:
            logits = forward_pass(
                model,
                batch.inputs,
                substitutes=substitutes,
                buffers=direction.buffers,
                generators=batch.generators,
                context=context,
                live=direction.optimized,
                survey=direction.survey,
                apart=direction.apart,
            )
        except NotImplementedError as error:
            raise MeasurementError(
                f"forward mode stops at an operation without a formula: {str(error).splitlines()[0]} "
                '(method="secant" needs none)'
            ) from error
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise MeasurementError(
                f'the model fails in forward mode: {str(error).splitlines()[0]}; take method="secant", which runs it '
                "as it is (where it takes gradients in its own parameters, or forward mode itself, nothing else does)"
            ) from error
        z, tangent = fw.unpack_dual(logits)
        if tangent is None:
            raise MeasurementError(
                "the logits carry no tangent: no parameter of the optimizer reaches them, or the model detaches, "
                "scripts or runs them in inference mode on the way"
            )
        return z.detach(), tangent


def relative_rounding(direction: Direction, eps: float) -> Tensor:
    """What rounding alone can leave in Jd, in units of the logits: ε_θ / 2 + 16 ε_z · ‖d‖ / ‖θ0‖, a scalar.

    `eps` is ε_z, that of the pass (`coarsest_eps`).

    The first term is that of d itself, the difference of two stored parameters, each rounded to half an ε_θ. The
    second is that of the pass: it adds up terms of the size of z times the parameters' relative change, each with an
    error of ε_z, and 16 stands for the depth of such sums. Where the terms cancel exactly (a step that only rescales
    what a normalization undoes), this is all that is left.
    """
    before, change = direction.moved()
    stored = max(torch.finfo(value.dtype).eps for value in before)
    length = get_total_norm(before).clamp(min=SHORTEST)
    return pass_rounding(stored=stored, eps=eps, before=length, change=get_total_norm(change))


SHORTEST = torch.finfo(torch.float32).tiny
"""Of a ‖θ0‖ that is divided by."""


def pass_rounding(*, stored: float, eps: float, before: Number, change: Number) -> Number:
    """`relative_rounding` of the lengths ‖θ0‖ and ‖d‖; `stored` is the parameters' ε_θ."""
    return stored / 2 + 16 * eps * change / before


def row_forms(
    loss: Loss,
    z: Tensor,
    tangent: Tensor,
    targets: Tensor,
    *,
    eps: float | None = None,
    rounding: Tensor | float = 0.0,
    noise: Tensor | None = None,
    live: Mapping[int, str] | None = None,
    apart: TensorsApart | None = None,
) -> RowForms:
    """Every row's loss, slope and curvature; half-precision logits are taken to float32 first.

    `eps` is the spacing of the numbers that they were made of (`coarsest_eps`), by default that of their own type.
    `rounding` (in units of the logits) or `noise` (a tangent) say what rounding alone can leave in `tangent`. Its size
    is judged by what the loss makes of it: where the curvature along `tangent` is not larger than that along it, the
    curvature's error is infinite. So logits without a say (masked ones, a part common to all) do not count.
    `live` describes, by id, the parameters that a loss of the user's own must not read, and `apart` has what takes the
    place of its other tensors beside training.
    """
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    tiny = torch.finfo(z.dtype).tiny
    if z.dtype in (torch.float16, torch.bfloat16):
        z, tangent = z.float(), tangent.float()
    with torch.no_grad(), loss_undisturbed(loss, z.device, live or {}, apart):
        error = loss.curvature_error(z, targets, tangent, eps).double().mean().clamp(min=tiny)
        curvature_of = curvature_along(loss, z, targets)
        curvature = curvature_of(tangent)
        least = rounding**2 * _seen(curvature_of, z) if noise is None else _size(curvature_of(noise.to(z.dtype)))
        return RowForms(
            loss=loss.per_sample(z, targets),
            slope=loss.slope(z, targets, tangent),
            curvature=curvature,
            curvature_error=torch.where(_size(curvature) <= least, torch.inf, error),
        )


def secant_summary(
    loss: Loss,
    z: Tensor,
    later: Tensor,
    targets: Tensor,
    *,
    eps: float,
    live: Mapping[int, str] | None = None,
    apart: TensorsApart | None = None,
) -> Tensor:
    """`summarize` of the forms along the difference of two passes' logits, `z` before the step and `later` after it.

    Rounding can leave ±4 ε z in it, with signs as they come; `eps` is ε, that of the passes (`coarsest_eps`).
    """
    tangent, noise = secant_tangent(z, later, eps=eps)
    return summarize(row_forms(loss, z, tangent, targets, eps=eps, noise=noise, live=live, apart=apart))


def secant_tangent(z: Tensor, later: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The difference of two passes' logits, and what rounding can leave in it."""
    tangent = torch.where(later == z, 0, later - z)  # −∞ − (−∞) where logits are masked
    signs = torch.arange(z.numel(), device=z.device).reshape(z.shape).remainder(2) * 2 - 1
    return tangent, 4 * eps * bounded_logits(z) * signs


def _seen(curvature_of: AlongTangent, z: Tensor) -> Tensor:
    """The logits' own size as the loss weighs it, less what all rows have in common, a scalar: the smaller of two."""
    bounded = bounded_logits(z)
    whole = _size(curvature_of(bounded))
    if len(z) < 2:
        return whole
    return torch.minimum(whole, _size(curvature_of(bounded - bounded.mean(0))))


def bounded_logits(z: Tensor) -> Tensor:
    """Logits without infinities and masks, whose squares overflow."""
    return torch.where(z.abs() < 1e15, z, 0)


def _size(curvature: Tensor) -> Tensor:
    return curvature.double().abs().mean()


SUMMARY: tuple[str, ...] = (
    "rows",
    "loss",
    "slope",
    "curvature",
    "curvature_error",
    "slope_variance",
    "curvature_variance",
    "covariance",
)
"""What `summarize` holds, in order; the variances are those of the means, not of a row."""


def summarize(forms: RowForms) -> Tensor:
    """Means over rows and the covariance of the two means, (len(SUMMARY),) float64 on the forms' device.

    NaN variances where one row leaves them undefined.
    """
    rows = forms.slope.shape[0]
    pairs = torch.stack([forms.slope.double(), forms.curvature.double()])
    means = pairs.mean(1)
    centered = pairs - means[:, None]
    covariance = centered @ centered.T / (rows * (rows - 1)) if rows > 1 else means.new_full((2, 2), torch.nan)
    return torch.stack(
        [
            means.new_full((), rows),
            forms.loss.double().mean(),
            means[0],
            means[1],
            forms.curvature_error,
            covariance[0, 0],
            covariance[1, 1],
            covariance[0, 1],
        ]
    )
