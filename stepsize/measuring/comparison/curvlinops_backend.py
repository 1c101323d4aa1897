"""dᵀCd for the curvature matrices of curvlinops (extra `curvlinops`), to compare the Gauss-Newton form with.

Dense and slow on purpose: a copy of the model at θ0, whole tables, and one product of the operator with d.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stepsize.errors import MeasurementError
from stepsize.losses import BCEWithLogits, CrossEntropy, Loss, SquaredError, unweighted
from stepsize.measuring.direction import Batch, Direction
from stepsize.measuring.kept import own_copy
from stepsize.measuring.passes import ForwardContext, undisturbed

OPERATORS = {
    "ggn": "GGNLinearOperator",
    "hessian": "HessianLinearOperator",
    "fisher": "FisherMCLinearOperator",
    "empirical_fisher": "EFLinearOperator",
}
"""Short names; any other operator goes by its class name in curvlinops."""


def quadratic_form(
    operator: str,
    model: nn.Module,
    loss: Loss,
    direction: Direction,
    batch: Batch,
    *,
    context: ForwardContext = nullcontext,
    check_deterministic: bool = False,
) -> Tensor:
    """dᵀCd at θ0 of the mean loss over `batch`, a scalar tensor, by `d @ (C @ d)`.

    Raises: MeasurementError where curvlinops is missing, does not know the operator or cannot build it for this
    model and loss (its Fisher operators take the three standard losses only).
    """
    kind = operator_class(operator)
    replica = _at_origin(model, direction)
    moving = [parameter for name, parameter in replica.named_parameters() if name in direction.differences]
    change = [direction.differences[name] for name, _ in replica.named_parameters() if name in direction.differences]
    # curvlinops wants (R, C) logits; the losses that take logits of any shape don't mind.
    columns = isinstance(unweighted(loss), BCEWithLogits | SquaredError)
    targets = batch.targets.reshape(len(batch.targets), -1) if columns else batch.targets
    with undisturbed(batch.generators), context():
        try:
            matrix = kind(
                _OneArgument(replica, columns=columns),
                _torch_loss(loss),
                moving,
                [({str(i): value for i, value in enumerate(batch.inputs)}, targets)],
                check_deterministic=check_deterministic,
                batch_size_fn=lambda _: len(batch.targets),
            )
            product = matrix @ change
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            raise MeasurementError(
                f"curvature {operator!r}: curvlinops cannot take this model and loss ({str(error).splitlines()[0]}); "
                'use curvature="ggn"'
            ) from error
    return torch.stack([(c * p).sum(dtype=torch.float64) for c, p in zip(change, product, strict=True)]).sum()


def operator_class(operator: str) -> Any:
    """The operator of that short or class name; raises MeasurementError where there is none, or no curvlinops."""
    try:
        import curvlinops
    except ImportError:
        raise MeasurementError(
            f"curvature {operator!r} needs curvlinops; install it with pip install curvlinops-for-pytorch, or take "
            'curvature="ggn"'
        ) from None
    found = getattr(curvlinops, OPERATORS.get(operator, operator), None)
    if found is None:
        known = ", ".join(OPERATORS)
        raise MeasurementError(
            f"curvature {operator!r} is unknown; choose {known} or the name of a curvlinops operator"
        )
    return found


def _at_origin(model: nn.Module, direction: Direction) -> nn.Module:
    replica = copy.deepcopy(model)
    for module in replica.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # sparse gradients have no second derivative
    with torch.no_grad():
        for name, parameter in replica.named_parameters():
            then = direction.values.get(name, direction.constants.get(name))
            if then is not None:
                parameter.copy_(then)
            parameter.grad = None
        for name, buffer in replica.named_buffers():
            buffer.copy_(direction.buffers[name])
    return replica


class _OneArgument(nn.Module):
    """A model of several inputs as a function of one mapping, which is what curvlinops hands on."""

    def __init__(self, model: nn.Module, *, columns: bool) -> None:
        super().__init__()
        self.model = model
        self.columns = columns

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        z = self.model(*own_copy(tuple(inputs.values())))
        return z.reshape(z.shape[0], -1) if self.columns else z


class _MeanLoss(nn.Module):
    """Any of our losses as the mean that curvlinops divides by."""

    reduction = "mean"

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.loss.per_sample(z, y).mean()


def _torch_loss(loss: Loss) -> nn.Module:
    plain = {BCEWithLogits(): nn.BCEWithLogitsLoss, CrossEntropy(): nn.CrossEntropyLoss, SquaredError(): nn.MSELoss}
    return plain[loss]() if loss in plain else _MeanLoss(loss)
