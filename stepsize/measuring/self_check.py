"""Compares a measured slope with a backward pass through the real module, once, before training goes further.

Forward mode runs the model with other tensors in its parameters' place, and every operation by its own forward-mode
formula. Where a model reads weights by another way, keeps hidden state, or uses a formula that is wrong, the numbers
would be wrong without a word; the gradient that training itself follows tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepsize.errors import MeasurementError
from stepsize.losses import Loss
from stepsize.measuring.curvature import RowForms
from stepsize.measuring.direction import Batch, Snapshot
from stepsize.measuring.forward_mode import RECURRENT, without_fused_kernels
from stepsize.measuring.kept import Generators, attributes_kept, contents_of, own_copy
from stepsize.measuring.optimizers import Steps
from stepsize.measuring.passes import TF32_EPS, ForwardContext, as_logits, loss_modules, undisturbed

CAUSES = (
    "a hook that changes gradients, a function whose backward is not its derivative, an operation whose forward mode "
    "is wrong in torch, parameters read past the module's attributes, or hidden state"
)
REMEDY = (
    'take method="secant", which needs no forward mode, or build the worker with self_check=False if the difference '
    "is meant"
)


@dataclass(frozen=True, kw_only=True)
class _Slope:
    """One parameter with its gradient at θ0, both of the rows that have one where only those are kept."""

    parameter: Tensor
    rows: Tensor | None
    before: Tensor
    gradient: Tensor

    def dot(self) -> tuple[Tensor, Tensor]:
        """g·d and ‖g‖‖d‖ of this parameter, scalars, now that the optimizer has stepped."""
        after = self.parameter.detach()
        change = (after if self.rows is None else after.index_select(0, self.rows)).double() - self.before.double()
        gradient = self.gradient.double()
        return (change * gradient).sum(), change.norm() * gradient.norm()


class SelfCheck:
    """B1's loss and gradient at θ0 by a backward pass through the real module, to hold against forward mode.

    It covers everything the optimizers move, also what the model reaches past its own attributes. Costs a forward and
    a backward pass, the gradient, and θ0 of what `kept` does not have already (of a table's gradient only the rows
    that have one). Nothing of training changes: no `.grad`, buffer, attribute or generator.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: Mapping[int, tuple[Tensor, str]],
        batch: Batch,
        *,
        kept: Mapping[int, Tensor],
        context: ForwardContext = nullcontext,
    ) -> None:
        """`parameters` has, by id, every parameter of the optimizers and what to call it; `kept` has θ0 of some.

        Raises: MeasurementError where a parameter that the model does not list has a gradient.
        """
        moved = {key: entry for key, entry in parameters.items() if entry[0].requires_grad}
        with torch.enable_grad():
            losses, gradients, eps = _backward(
                model, loss, [parameter for parameter, _ in moved.values()], batch, context
            )
        self.losses, self.eps = losses, eps
        self.told = False
        """Whether the comparison told anything: a step that moves nothing has no slope."""
        listed = {id(parameter) for parameter in model.parameters()}
        for (key, (_, name)), gradient in zip(moved.items(), gradients, strict=True):
            if gradient is not None and key not in listed and _nonzero(gradient):
                raise MeasurementError(
                    f"the loss depends on parameter {name} which the optimizer moves but the model does not list as "
                    "its own; register it in the model (nn.ParameterList, nn.ModuleList), or make the loss's weights "
                    "the model's last layer"
                )
        self._dots: list[tuple[Tensor, Tensor]] = []
        self._slopes = [
            _kept(parameter, gradient, kept.get(key))
            for (key, (parameter, _)), gradient in zip(moved.items(), gradients, strict=True)
            if gradient is not None
        ]

    @classmethod
    def of_step(
        cls,
        model: nn.Module,
        loss: Loss,
        optimizers: Sequence[Steps],
        batch: Batch,
        snapshot: Snapshot,
        *,
        context: ForwardContext = nullcontext,
    ) -> SelfCheck:
        """Of the step that `snapshot` was taken before."""
        called = snapshot.optimized
        parameters = {
            id(parameter): (parameter, called[id(parameter)])
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        kept = {id(snapshot.moving[name]): value for name, value in snapshot.values.items()}
        return cls(model, loss, parameters, batch, kept=kept, context=context)

    def after_step(self) -> None:
        """Take the gradient along the step that the optimizer has made; later values are not read."""
        self._dots = [slope.dot() for slope in self._slopes]
        self._slopes = []

    def compare(self, forms: RowForms) -> None:
        """Hold `forms` of B1 against the gradient along the step; the host waits for both.

        Raises: MeasurementError where losses or slopes differ by more than rounding.
        """
        allowed = 2 * math.sqrt(self.eps)
        self._compare_losses(forms.loss.double(), allowed)
        if not torch.isfinite(self.losses).all():
            return  # no slope to compare: a batch without a label that counts, say
        expected = math.fsum(dot.item() for dot, _ in self._dots)
        lengths = math.fsum(length.item() for _, length in self._dots)
        found, size = forms.slope.double().mean().item(), forms.slope.double().abs().mean().item()
        self.told = lengths > 0
        if not math.isfinite(expected) or lengths > math.sqrt(torch.finfo(forms.slope.dtype).max):
            return  # a step that overflows: training diverges, which is not forward mode's doing
        if not math.isfinite(found):
            raise MeasurementError(
                f"self-check: forward mode gives the slope {found} and a backward pass {expected:.6g}; a 0 · inf in "
                "forward mode is likely, as in the softmax of a row that is masked whole: mask with a finite number "
                f"such as -1e9, or {REMEDY}"
            )
        if abs(found - expected) <= allowed * size + min(64 * self.eps, allowed / 4) * lengths:
            return
        raise MeasurementError(
            f"self-check: the measured slope {found:.6g} is not that of a backward pass, {expected:.6g}; "
            f"likely {CAUSES}; {REMEDY}"
        )

    def _compare_losses(self, losses: Tensor, allowed: float) -> None:
        both = torch.isfinite(losses) & torch.isfinite(self.losses)
        difference = (losses - self.losses)[both].abs().sum().item()
        size = self.losses[both].abs().sum().item()
        agree = bool((torch.isfinite(losses) == torch.isfinite(self.losses)).all())
        if agree and difference <= allowed * (size + 1e-3 * len(losses)):
            return
        raise MeasurementError(
            "self-check: two passes over the same rows gave different losses "
            f"({losses.mean().item():.6g} and {self.losses.mean().item():.6g}); the model or the loss has hidden state "
            "or draws random numbers that are not kept: keep state in buffers and generators in attributes of the "
            f"model, or {REMEDY}"
        )


def _backward(
    model: nn.Module, loss: Loss, parameters: Sequence[Tensor], batch: Batch, context: ForwardContext
) -> tuple[Tensor, tuple[Tensor | None, ...], float]:
    """Every row's loss, the mean loss's gradient in the parameters themselves, and the pass's coarsest rounding.

    Buffers and inputs are written to in copies.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    modules = loss_modules(loss)
    with undisturbed(batch.generators, list(model.named_modules())):
        with _Precision() as precision, context():
            z = as_logits(torch.func.functional_call(model, buffers, own_copy(batch.inputs)))
        contents = contents_of(modules)
        now = Generators.capture(batch.generators.device, contents)
        with attributes_kept(modules, contents, buffers=True):
            losses = loss.per_sample(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, batch.targets)
        now.restore()
        if not losses.requires_grad:
            return losses.detach().double(), (None,) * len(parameters), precision.eps
        try:
            gradients = torch.autograd.grad(losses.mean(), list(parameters), allow_unused=True)
        except RuntimeError as error:
            raise MeasurementError(
                f"self-check: a backward pass on B1 fails ({str(error).splitlines()[0]}); build the worker with "
                "self_check=False if the model cannot have one before the step"
            ) from error
    return losses.detach().double(), gradients, precision.eps


class _Precision(TorchFunctionMode):
    """Notes the coarsest rounding that any operation's result has."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # fused recurrent kernels draw dropout masks of their own
        result = without_fused_kernels(func, args, kwargs) if func in RECURRENT else func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            coarse = result.is_cuda and result.dtype is torch.float32  # products may be rounded to TF32
            self.eps = max(self.eps, TF32_EPS if coarse else torch.finfo(result.dtype).eps)
        return result


def _nonzero(gradient: Tensor) -> bool:
    return bool(torch.count_nonzero(gradient.coalesce().values() if gradient.is_sparse else gradient))


def _kept(parameter: Tensor, gradient: Tensor, before: Tensor | None) -> _Slope:
    values = parameter.detach()
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        return _Slope(
            parameter=parameter, rows=rows, before=values.index_select(0, rows), gradient=gradient.values().clone()
        )
    if before is not None or values.ndim != 2:
        return _Slope(
            parameter=parameter, rows=None, before=values.clone() if before is None else before, gradient=gradient
        )
    rows = gradient.any(1).nonzero().squeeze(1)
    return _Slope(
        parameter=parameter, rows=rows, before=values.index_select(0, rows), gradient=gradient.index_select(0, rows)
    )
