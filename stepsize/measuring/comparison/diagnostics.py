"""Norms, cosines and losses around one step, at the cost of a forward and backward pass over B1."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stepsize.estimate import Diagnostics
from stepsize.losses import Loss
from stepsize.measuring.direction import Batch, Direction
from stepsize.measuring.passes import ForwardContext, forward_pass, loss_undisturbed
from stepsize.measuring.tables import StandIn, Whole

PRODUCTS: tuple[str, ...] = ("g1g1", "g1d", "dd", "g2g2", "g2d", "loss_b2")
"""What `diagnose` returns, in order; NaN where B2's gradient or B2 itself was not there to see."""


def diagnose(
    model: nn.Module,
    loss: Loss,
    direction: Direction,
    batches: tuple[Batch, ...],
    *,
    context: ForwardContext = nullcontext,
) -> Tensor:
    """The PRODUCTS of B1's gradient at θ0, of B2's as the optimizer saw it, and of d, (6,) float64."""

    def loss_kept() -> AbstractContextManager[None]:
        return loss_undisturbed(loss, batches[0].targets.device, direction.optimized, direction.loss_apart)

    leaves = {name: value.detach().requires_grad_() for name, value in direction.values.items()}
    with torch.enable_grad():
        z = _forward(model, direction, leaves, batches[0], context=context)
        with loss_kept():
            mean = loss.per_sample(_widened(z), batches[0].targets).mean()
        gradients = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
    changes = list(direction.differences.values())
    g1g1, g1d, dd = _dot(gradients, gradients), _dot(gradients, changes), _dot(changes, changes)
    unknown = dd.new_full((), torch.nan)
    g2g2 = g2d = loss_b2 = unknown
    if direction.gradients:
        named = direction.gradients
        g2g2 = _dot(list(named.values()), list(named.values()))
        g2d = _dot(list(named.values()), [direction.differences[name] for name in named])
    if len(batches) > 1:
        with torch.no_grad():
            z2 = _forward(model, direction, direction.values, batches[1], context=context)
            with loss_kept():
                loss_b2 = loss.per_sample(_widened(z2), batches[1].targets).double().mean()
    return torch.stack([g1g1, g1d, dd, g2g2, g2d, loss_b2])


def diagnostics_from(products: list[float]) -> Diagnostics:
    """What the PRODUCTS, now floats, say; None for what could not be seen or has no direction."""
    values = dict(zip(PRODUCTS, products, strict=True))

    def norm(square: str) -> float | None:
        return math.sqrt(values[square]) if math.isfinite(values[square]) else None

    def cosine(dot: str, square: str) -> float | None:
        lengths = math.sqrt(values[square] * values["dd"]) if values[square] * values["dd"] > 0 else math.nan
        return values[dot] / lengths if math.isfinite(values[dot] / lengths) else None

    return Diagnostics(
        loss_b2=values["loss_b2"] if math.isfinite(values["loss_b2"]) else None,
        gradient_norm_b1=norm("g1g1"),
        gradient_norm_b2=norm("g2g2"),
        direction_norm=norm("dd"),
        cosine_b1=cosine("g1d", "g1g1"),
        cosine_b2=cosine("g2d", "g2g2"),
    )


def _forward(
    model: nn.Module,
    direction: Direction,
    values: dict[str, Tensor],
    batch: Batch,
    *,
    context: ForwardContext,
) -> Tensor:
    tables = direction.survey.tables
    moving = {name: StandIn(name, value, Whole(value)) if name in tables else value for name, value in values.items()}
    return forward_pass(
        model,
        batch.inputs,
        substitutes={**direction.constants, **moving},
        buffers=direction.buffers,
        generators=batch.generators,
        context=context,
        live=direction.optimized,
        survey=direction.survey,
        apart=direction.apart,
    )


def _widened(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _dot(left: list[Tensor] | tuple[Tensor, ...], right: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Σ over tensors of their inner products, each summed in its own precision, the sum in float64."""
    return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)]).sum()
