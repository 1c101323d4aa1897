"""Per-sample loss, slope and curvature in the logits, in closed form or by autograd.

Letters: R rows, C logits a row. `z` logits, `y` targets, `t` the logits' directional derivative Jd.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize.errors import MeasurementError

AlongTangent = Callable[[Tensor], Tensor]
"""From the logits' directional derivative to one number a row, (R,)."""


class Loss(Protocol):
    """A loss ℓ whose mean over rows is what is trained.

    `z` and `t` are (R,), (R, 1) or (R, C); every method returns one number a row, (R,).
    """

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        """ℓ_i."""
        ...

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """(∂ℓ_i/∂z) · t_i."""
        ...

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """t_iᵀ (∂²ℓ_i/∂z²) t_i."""
        ...

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        """Bound of the curvature's absolute error if every t carries a relative rounding error of `eps`."""
        ...


@dataclass(frozen=True)
class BCEWithLogits:
    """Binary cross-entropy on logits, averaged over a row's logits; y in [0, 1], as many as logits.

    With class weights or smoothing y is 0 or 1: a label's own loss, against the target y(1 − ε) + ε/2 with
    ε = `label_smoothing`, counts `positive_weight` or `negative_weight` times. Mean over rows, not over weights, as
    torch's `pos_weight` has it.
    """

    positive_weight: float = 1.0
    negative_weight: float = 1.0
    label_smoothing: float = 0.0

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        """The mean over all logits, (), of z and y of one shape; plain, it is torch's own to the bit."""
        return functional.binary_cross_entropy_with_logits(z, self._smoothed(y), self._weights(y))

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _columns(z), _targets_like(z, y)
        target, weights = self._smoothed(y), self._weights(y)
        return functional.binary_cross_entropy_with_logits(z, target, weights, reduction="none").mean(1)

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        z, y, t = _columns(z), _targets_like(z, y), _columns(t)
        along, weights = (torch.sigmoid(z) - self._smoothed(y)) * t, self._weights(y)
        return (along if weights is None else along * weights).mean(1)

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.curvature_of(z, y)(t)

    def curvature_of(self, z: Tensor, y: Tensor) -> AlongTangent:
        """`curvature` as a function of t, with what depends on z alone computed once."""
        z = _columns(z)
        # σ(z)σ(−z) keeps its digits where p(1 − p) is already 0 (float32: from z = 17 on).
        weight = torch.sigmoid(z) * torch.sigmoid(-z)
        if (weights := self._class_weights(z, y)) is not None:
            weight = weight * weights
        return lambda t: (weight * _columns(t).square()).mean(1)

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        return 2 * eps * self.curvature(z, y, t)

    def _smoothed(self, y: Tensor) -> Tensor:
        return y if self.label_smoothing == 0.0 else y * (1.0 - self.label_smoothing) + self.label_smoothing / 2

    def _class_weights(self, z: Tensor, y: Tensor) -> Tensor | None:
        """`_weights` without a look at targets that nothing is asked of."""
        plain = self.positive_weight == self.negative_weight == 1.0
        return None if plain else self._weights(_targets_like(z, y))

    def _weights(self, y: Tensor) -> Tensor | None:
        """How often each label's loss counts, in y's shape and dtype; None if each counts once."""
        if self.positive_weight == self.negative_weight == 1.0:
            return None
        return torch.full_like(y, self.negative_weight).masked_fill(y > 0.5, self.positive_weight)


@dataclass(frozen=True)
class WeightedRows:
    """`loss`, each row of which counts as often as it says; y (R, 2): a row's target, and its weight.

    The mean is over rows, not over weights, as that of torch's losses with `weight` for each row. A common factor of
    all weights changes no α*.
    """

    loss: Loss

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", as_loss(self.loss))

    def mean(self, z: Tensor, y: Tensor) -> Tensor:
        """The mean over rows, ()."""
        return self.per_sample(z, y).mean()

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        target, weight = self._parts(y)
        return self.loss.per_sample(z, target) * weight

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        target, weight = self._parts(y)
        return self.loss.slope(z, target, t) * weight

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.curvature_of(z, y)(t)

    def curvature_of(self, z: Tensor, y: Tensor) -> AlongTangent:
        """`curvature` as a function of t, with what depends on z alone computed once."""
        target, weight = self._parts(y)
        along = curvature_along(self.loss, z, target)
        return lambda t: along(t) * weight

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        target, weight = self._parts(y)
        return self.loss.curvature_error(z, target, t, eps) * weight

    @staticmethod
    def _parts(y: Tensor) -> tuple[Tensor, Tensor]:
        if y.ndim != 2 or y.shape[1] != 2:
            raise MeasurementError(
                f"WeightedRows: targets {tuple(y.shape)}; give (R, 2), such as torch.stack([target, weight], 1)"
            )
        return y[:, 0], y[:, 1]


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy; z (R, C) with class indices (R,) or probabilities (R, C), averaged over rows.

    Token by token as in torch: z (R, C, T, ...) with indices (R, T, ...) or probabilities of z's shape; a row is then
    the R sequences' own sum over its tokens. Indices of −100 count for nothing, neither in sums nor in what the mean
    divides by, so that the mean over rows is torch's in every case.
    """

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        return self._rows(functional.cross_entropy(z, self._targets(z, y), reduction="none"), y, z)

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        y = self._targets(z, y)
        expected = (torch.softmax(z, 1) * t).sum(1)
        if y.ndim == z.ndim:
            return self._rows(expected * y.sum(1) - (y * t).sum(1), y, z)
        here = t.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
        return self._rows(torch.where(y < 0, 0, expected - here), y, z)

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.curvature_of(z, y)(t)

    def curvature_of(self, z: Tensor, y: Tensor) -> AlongTangent:
        """`curvature` as a function of t, with what depends on z alone computed once."""
        y = self._targets(z, y)
        p = torch.softmax(z, 1)

        def along(t: Tensor) -> Tensor:
            # Σ p t² − (Σ p t)² would cancel, below zero even, if all logits move together.
            form = (p * (t - (p * t).sum(1, keepdim=True)).square()).sum(1)
            return self._rows(form * y.sum(1) if y.ndim == z.ndim else torch.where(y < 0, 0, form), y, z)

        return along

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        """Each t's error counts as much as its class does: a class of probability 0 has no say."""
        p = torch.softmax(z, 1)
        t = torch.where(p > 0, t, 0)
        error = 2 * eps * (t.abs() + (p * t.abs()).sum(1, keepdim=True))
        centered = t - (p * t).sum(1, keepdim=True)
        return self._rows((p * error * (2 * centered.abs() + error)).sum(1), self._targets(z, y), z)

    @staticmethod
    def _rows(values: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """What torch's mean over the tokens that count divides by, spread over rows."""
        if values.ndim == 1 and y.ndim == z.ndim:
            return values
        sums = _columns(values).sum(1)
        counted = y.numel() // z.shape[1] if y.ndim == z.ndim else (y >= 0).sum()
        return sums * values.shape[0] / counted

    @staticmethod
    def _targets(z: Tensor, y: Tensor) -> Tensor:
        if z.ndim < 2 or y.shape not in (z.shape, z.shape[:1] + z.shape[2:]):
            swapped = z.ndim == 3 and y.shape == z.shape[:2]
            raise MeasurementError(
                f"cross-entropy: logits {tuple(z.shape)} with targets {tuple(y.shape)}; "
                "give (R, C) logits with (R,) class indices or (R, C) probabilities"
                + (", and for tokens classes second: logits.transpose(1, 2)" if swapped else "")
            )
        return y.to(z.dtype) if y.ndim == z.ndim else y.long()


@dataclass(frozen=True)
class SquaredError:
    """Squared error, averaged over a row's outputs as torch's `MSELoss` does; y as many as outputs.

    `halved` gives ½ the sum over a row's outputs instead: gradient z − y, curvature ‖t‖².
    """

    halved: bool = False

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        return self._scale(z) / 2 * (_columns(z) - _targets_like(z, y)).square().sum(1)

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self._scale(z) * ((_columns(z) - _targets_like(z, y)) * _columns(t)).sum(1)

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self._scale(z) * _columns(t).square().sum(1)

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        return 2 * eps * self.curvature(z, y, t)

    def _scale(self, z: Tensor) -> float:
        return 1.0 if self.halved else 2.0 / _columns(z).shape[1]


@dataclass(frozen=True)
class AutogradLoss:
    """A loss of the user's own, `function(z, y) -> (R,)`; its slope and Hessian form come from autograd in the logits.

    Row i of the result may depend on row i of the logits alone; of a result (R, T, ...) every row's mean is taken.
    The curvature is negative if the loss is concave. The function may read no parameter that the optimizer moves;
    it gets copies, which it may write into. Compiled functions in it run as written here.

    Policy `auto` takes 0 for the least that a loss can be: the first rate that it begins at takes no more than that.
    One that falls far below 0 from a mean just above it begins at too low a rate, which then rises.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def per_sample(self, z: Tensor, y: Tensor) -> Tensor:
        losses = self.function(z.clone(), y.clone() if isinstance(y, Tensor) else y)
        if not isinstance(losses, Tensor) or losses.shape[:1] != z.shape[:1]:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise MeasurementError(
                f"the loss function returned {shape} for {z.shape[0]} rows; return one loss a row, (R,), or one a "
                'token, (R, T), such as by reduction="none"'
            )
        return _columns(losses).mean(1)

    def slope(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return _columns(self._forms(z, y, t)[0]).sum(1)

    def curvature(self, z: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return _columns(self._forms(z, y, t)[1]).sum(1)

    def curvature_error(self, z: Tensor, y: Tensor, t: Tensor, eps: float) -> Tensor:
        return 4 * eps * _columns(self._forms(z, y, t)[1]).abs().sum(1)

    def _forms(self, z: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """g ⊙ t and t ⊙ Ht in z's shape; rows don't mix, so the gradient of the sum is every row's own.

        Raises: MeasurementError where the function has no second derivative, such as torch's CTC loss.
        """
        with torch.enable_grad(), _as_written():
            leaf = z.detach().requires_grad_()
            total = self.per_sample(leaf, y).sum()
            try:
                (gradient,) = torch.autograd.grad(total, leaf, create_graph=True, materialize_grads=True)
                slopes = gradient * t
                if not slopes.requires_grad:  # a loss linear in its logits
                    return slopes, torch.zeros_like(slopes)
                (product,) = torch.autograd.grad(slopes.sum(), leaf, materialize_grads=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise MeasurementError(
                    f"the loss function cannot be differentiated twice in the logits ({str(error).splitlines()[0]}), "
                    "and α* needs its curvature; write it in operations that can, such as log_softmax, clamp and sums"
                ) from error
        return slopes.detach(), t * product


def _as_written() -> AbstractContextManager[Any]:
    """Within it nothing runs compiled: of a compiled function torch takes the second derivative for zero, silently."""
    if "torch._dynamo" not in sys.modules:  # only with it can anything be compiled, and importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def unweighted(loss: Loss) -> Loss:
    """The loss of a row that counts once."""
    return unweighted(loss.loss) if isinstance(loss, WeightedRows) else loss


def curvature_along(loss: Loss, z: Tensor, y: Tensor) -> AlongTangent:
    """`loss.curvature` at these logits, for several derivatives."""
    # a class made of these may have its own curvature
    if type(loss) is BCEWithLogits or type(loss) is CrossEntropy or type(loss) is WeightedRows:
        return loss.curvature_of(z, y)
    return lambda t: loss.curvature(z, y, t)


PLAIN = {nn.BCEWithLogitsLoss: BCEWithLogits, nn.CrossEntropyLoss: CrossEntropy, nn.MSELoss: SquaredError}
USUAL = {"reduction": "mean", "weight": None, "pos_weight": None, "label_smoothing": 0.0, "ignore_index": -100}


def as_loss(loss: Loss | nn.Module) -> Loss:
    """`loss` itself, or what stands for torch's `BCEWithLogitsLoss`, `CrossEntropyLoss` or `MSELoss`.

    Raises: MeasurementError for any other module or function, and for one with weights, smoothing or a sum.
    """
    methods = ("per_sample", "slope", "curvature", "curvature_error")
    if not isinstance(loss, type) and all(callable(getattr(loss, name, None)) for name in methods):
        return cast(Loss, loss)
    found = PLAIN.get(type(loss))  # pyright: ignore[reportArgumentType, reportCallIssue]
    options = [name for name, usual in USUAL.items() if getattr(loss, name, usual) != usual] if found else []
    if found is None or options:
        name = getattr(loss, "__name__", type(loss).__name__)
        if options:
            value = getattr(loss, options[0])
            said = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            name += f" with {options[0]}={said}"
        standard = ", ".join(f"nn.{kind.__name__}()" for kind in PLAIN)
        if options and found is BCEWithLogits:
            standard += ", stepsize.BCEWithLogits(positive_weight=..., label_smoothing=...)"
        raise MeasurementError(
            f"loss: {name} has no closed form here; give {standard}, or AutogradLoss(function) with "
            "function(z, y) -> one loss a row"
        )
    return found()


def _columns(z: Tensor) -> Tensor:
    return z.flatten(1) if z.ndim > 1 else z.unsqueeze(1)


def _targets_like(z: Tensor, y: Tensor) -> Tensor:
    if z.numel() != y.numel() or z.shape[0] != y.shape[0]:
        raise MeasurementError(
            f"loss: logits {tuple(z.shape)} with targets {tuple(y.shape)}; give as many targets as logits"
        )
    return _columns(y).to(z.dtype)
