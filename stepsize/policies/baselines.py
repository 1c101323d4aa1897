"""Other rules for the step length, to compare with α*: PAL, SGD-BB, SPS and L4, around any optimizer.

Each is a formula of a few numbers and a class that takes the optimizer's steps for it. All look at the batch that is
trained on, so what they see is what `biased` estimates see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepsize.policies.rates import set_learning_rate


def parabolic_length(
    loss: float, trial_loss: float, slope: float, *, trial: float, longest: float, stretch: float
) -> float:
    """Where a parabola through the losses at 0 and at `trial` with `slope` at 0 is least, stretched and bounded.

    b = `slope`, a = (ℓ(μ) − ℓ(0) − bμ) / μ²: −κb / 2a where the parabola opens upwards (a > 0, b < 0), μ where it
    opens downwards, 0 if the direction climbs or a loss is not finite; never more than `longest`.
    """
    if not (math.isfinite(loss) and math.isfinite(trial_loss)) or not slope < 0:
        return 0.0
    bend = (trial_loss - loss - slope * trial) / trial**2
    return min(-stretch * slope / (2 * bend) if bend > 0 else trial, longest)


def barzilai_borwein_rate(change: float, product: float, steps: int) -> float | None:
    """‖s‖² / (m·|sᵀy|) from `change` = ‖s‖², `product` = sᵀy and m = `steps`; None if sᵀy = 0."""
    return change / (steps * abs(product)) if product else None


def polyak_rate(
    loss: float, squared_norm: float, previous: float, *, growth: float = 2 ** (1 / 500), eps: float = 1e-8
) -> float:
    """min(`growth`·η₋, ℓ / (½‖g‖² + ε)) from ‖g‖² and the rate η₋ of the step before; the least loss is taken as 0."""
    return min(growth * previous, loss / (0.5 * squared_norm + eps))


def l4_rate(
    loss: float, least: float, product: float, *, share: float = 0.15, target: float = 0.9, eps: float = 1e-12
) -> float:
    """0.15·(ℓ − 0.9·ℓ_min) / (ĝᵀv + ε): the rate at which a linear loss would fall by `share` of the way to target.

    `product` is ĝᵀv of the averaged gradient and the optimizer's direction. Negative if that is.
    """
    return share * (loss - target * least) / (product + eps)


class _UnitStep:
    """A step that the optimizer takes at rate 1, to be taken back and put anywhere along its line."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._parameters = optimizer, _parameters(optimizer)
        self._origin = [parameter.detach().clone() for parameter in self._parameters]
        set_learning_rate(optimizer, 1.0)
        optimizer.step()
        self.change = _difference([parameter.detach() for parameter in self._parameters], self._origin)
        self.length = math.sqrt(_dot(self.change, self.change))

    @torch.no_grad()
    def place(self, rate: float) -> None:
        """Put the parameters where a step of `rate` leads, bit for bit back for rate 0, and set the optimizer's."""
        for parameter, origin, change in zip(self._parameters, self._origin, self.change, strict=True):
            parameter.copy_(origin + rate * change if rate else origin)
        set_learning_rate(self._optimizer, rate)


class PAL:
    """Parabolic approximation line search (M. Mutschler and A. Zell, Parabolic Approximation Line Search for DNNs,
    NeurIPS 2020, arXiv 1903.11991) along the optimizer's direction.

    Measures the batch's loss at distance `trial` along the direction and goes to the minimum of the parabola that it
    and the slope at 0 define (`parabolic_length`). With `torch.optim.SGD(momentum=0.4)` it is the published method;
    of other optimizers it takes the direction, for which their step must be proportional to their rate.
    Costs one forward pass a step and two copies of the parameters. If that loss is not finite the trial step
    is taken back, and the step with it.
    """

    def __init__(
        self, optimizer: Optimizer, *, trial: float = 1.0, longest: float = 3.16, stretch: float = 1 / 0.6
    ) -> None:
        self.optimizer, self.trial, self.longest, self.stretch = optimizer, trial, longest, stretch

    def step(self, loss: float | Tensor, evaluate: Callable[[], float | Tensor]) -> float:
        """The step's length, after `backward` on a batch whose loss is `loss`; `evaluate` gives that loss anew."""
        gradients = _gradients(self.optimizer)
        line = _UnitStep(self.optimizer)
        if not (math.isfinite(line.length) and line.length > 0):
            line.place(0.0)
            return 0.0
        slope = _dot(gradients, line.change) / line.length
        line.place(self.trial / line.length)
        with torch.no_grad():
            there = _number(evaluate())
        length = parabolic_length(
            _number(loss), there, slope, trial=self.trial, longest=self.longest, stretch=self.stretch
        )
        line.place(length / line.length)
        return length


class SGDBB:
    """SGD-BB (C. Tan, S. Ma, Y.-H. Dai and Y. Qian, Barzilai-Borwein Step Size for Stochastic Gradient Descent, NIPS
    2016, arXiv 1605.04131): Barzilai-Borwein rates from averaged gradients.

    Every `steps` optimizer steps the rate becomes ‖s‖² / (m·|sᵀy|), s being how far the parameters moved and y by how
    much the averaged gradient changed since the last time; ĝ ← (1 − β)ĝ + βg within those steps, beginning at 0.
    The first two series run at the optimizer's own rate. Costs three copies of the parameters.
    """

    def __init__(self, optimizer: Optimizer, *, steps: int, beta: float | None = None) -> None:
        """β is by default 10/m, at most 1."""
        self.optimizer, self.steps = optimizer, steps
        self.beta = min(1.0, 10 / steps) if beta is None else beta
        self._average: list[Tensor] | None = None
        self._last: tuple[list[Tensor], list[Tensor]] | None = None  # parameters and averaged gradient
        self._done = 0

    def step(self) -> float:
        """Takes one step and returns its rate; after `backward`."""
        gradients, rate = _gradients(self.optimizer), float(self.optimizer.param_groups[0]["lr"])
        average = self._average or [torch.zeros_like(gradient) for gradient in gradients]
        self._average = [(1 - self.beta) * a + self.beta * g for a, g in zip(average, gradients, strict=True)]
        self.optimizer.step()
        self._done += 1
        if self._done % self.steps == 0:
            self._renew(self._average)
        return rate

    def _renew(self, average: list[Tensor]) -> None:
        here = [parameter.detach().clone() for parameter in _parameters(self.optimizer)]
        if self._last is not None:
            s, y = _difference(here, self._last[0]), _difference(average, self._last[1])
            rate = barzilai_borwein_rate(_dot(s, s), _dot(s, y), self.steps)
            if rate is not None:
                set_learning_rate(self.optimizer, rate)
        self._last, self._average = (here, average), None


class SPS:
    """Stochastic Polyak steps (N. Loizou, S. Vaswani, I. Laradji and S. Lacoste-Julien, Stochastic Polyak Step-size for
    SGD, AISTATS 2021, arXiv 2002.10542), smoothed: `polyak_rate` of every batch.

    Meant for plain SGD on a model that can fit every batch, whose least loss is then 0; click logs have no such model.
    `growth` is the factor by which the rate may rise a step, 2 an epoch in the published code.
    """

    def __init__(self, optimizer: Optimizer, *, growth: float = 2 ** (1 / 500), initial_rate: float = 1.0) -> None:
        self.optimizer, self.growth, self.rate = optimizer, growth, initial_rate

    def step(self, loss: float | Tensor) -> float:
        """Takes one step and returns its rate; after `backward` on a batch whose loss is `loss`."""
        gradients = _gradients(self.optimizer)
        self.rate = polyak_rate(_number(loss), _dot(gradients, gradients), self.rate, growth=self.growth)
        set_learning_rate(self.optimizer, self.rate)
        self.optimizer.step()
        return self.rate


class L4:
    """L4 (M. Rolínek and G. Martius, L4: Practical Loss-Based Stepsize Adaptation for Deep Learning, NeurIPS 2018,
    arXiv 1802.05074): `l4_rate` along the optimizer's direction.

    ĝ is the gradient averaged over about `memory` steps, without the average's bias to its start at 0. ℓ_min is the
    least loss so far, beginning at three quarters of the first and forgotten at a rate of 1/`forget` a step. The
    optimizer's step must be proportional to its rate. Costs three copies of the parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        share: float = 0.15,
        target: float = 0.9,
        memory: float = 10.0,
        forget: float = 1000.0,
    ) -> None:
        self.optimizer, self.share, self.target = optimizer, share, target
        self.decay, self.forget = 1 - 1 / memory, forget
        self._average: list[Tensor] | None = None
        self._least: float | None = None
        self._done = 0

    def step(self, loss: float | Tensor) -> float:
        """Takes one step and returns its rate; after `backward` on a batch whose loss is `loss`."""
        loss = _number(loss)
        self._least = 0.75 * loss if self._least is None else min((1 + 1 / self.forget) * self._least, loss)
        gradients = _gradients(self.optimizer)
        average = self._average or [torch.zeros_like(gradient) for gradient in gradients]
        self._average = [self.decay * a + (1 - self.decay) * g for a, g in zip(average, gradients, strict=True)]
        self._done += 1
        line = _UnitStep(self.optimizer)
        product = -_dot(self._average, line.change) / (1 - self.decay**self._done)
        rate = l4_rate(loss, self._least, product, share=self.share, target=self.target)
        line.place(rate)
        return rate


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    """Dense copies of the gradients, zeros if there is none."""
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.detach().to_dense().clone() for p in _parameters(optimizer)
    ]


def _difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [a - b for a, b in zip(left, right, strict=True)]


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)))
