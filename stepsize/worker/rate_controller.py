"""A policy at work around the optimizer's step of any training loop: it sets the rate and measures what it wants."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stepsize.estimate import Estimate
from stepsize.losses import Loss
from stepsize.measuring import Steps, optimizers_of
from stepsize.policies import StepSizeConfig, make_policy, set_learning_rate
from stepsize.worker.horizon import Horizon
from stepsize.worker.worker import StepSizeWorker


class RateController:
    """Lets a policy, by default `auto`, set the learning rate of any training loop.

    >>> import torch
    >>> from torch import nn
    >>> from stepsize import RateController
    >>> _ = torch.manual_seed(0)
    >>> weights = torch.tensor([[3.0], [-2.0], [0.5], [1.0]])
    >>> def batch():
    ...     x = torch.randn(256, 4)
    ...     return x, (torch.rand(256, 1) < torch.sigmoid(x @ weights)).float()
    >>> model, loss = nn.Linear(4, 1), nn.BCEWithLogitsLoss()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    >>> controller = RateController(model, optimizer, loss, total_steps=300)
    >>> b1 = batch()
    >>> for step in range(300):
    ...     b2, b1 = b1, batch()  # the next batch probes this one's step
    ...     optimizer.zero_grad()
    ...     loss(model(b2[0]), b2[1]).backward()
    ...     with controller.around_step(*b1, step=step):
    ...         optimizer.step()
    >>> bool(loss(model(b1[0]), b1[1]) < 0.4), controller.rate > 1e-3
    (True, True)

    The probe batch B1 given to `around_step` must not have been trained on since the policy's oldest snapshot; the
    next training batch is such a one, and so are rows held out from training, which alone tell of overfitting where
    data is read more than once.

    Parts, each of use alone: `worker` measures single steps, `horizon` many at once, `policy` decides.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Steps | Sequence[Steps],
        loss: Loss | nn.Module,
        config: StepSizeConfig = StepSizeConfig(policy="auto"),  # noqa: B008 (frozen)
        *,
        total_steps: int | None,
        **options: Any,
    ) -> None:
        """`total_steps` is the budget, None if it has no end that counts steps: nothing is cooled down then.

        The first guess is the optimizer's rate. Of several optimizers all get the rate, each group by its share of the
        first group of its own. `options` are those of `StepSizeWorker`, but what is measured, and its delay, are
        `config`'s.

        Raises: as `StepSizeWorker` and `make_policy`.
        """
        self._optimizers = optimizers_of(optimizer)
        self.worker = StepSizeWorker(model, optimizer, loss, config.measuring, delay=config.delay, **options)
        self.horizon = Horizon(self.worker)
        guess = float(self._optimizers[0].param_groups[0]["lr"])
        self.policy = make_policy(config, initial_rate=guess, total_steps=total_steps)
        self._total_steps = total_steps
        self._warned = False
        self.scheduled = guess
        """The rate of steps that the policy leaves to a schedule; to be set by the caller who has one."""
        self.rate = guess
        """Of the latest step."""
        self.estimates: list[Estimate] = []
        """What the latest step brought, oldest first."""
        self.said: list[str] = []
        """What the policy said of these."""

    @contextmanager
    def around_step(
        self,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        *,
        train_inputs: Tensor | tuple[Any, ...] | None = None,
        train_targets: Tensor | None = None,
        step: int,
    ) -> Iterator[float]:
        """Sets the rate of `step`, counted from 0 without gaps; the body is the optimizer's step; yields the rate.

        Warns once of a step beyond the budget whose rate the policy has cooled down to 0.
        An exception in the body leaves nothing behind; the step is then to be made again.
        """
        self.rate = self.policy.learning_rate(step, self.scheduled)
        beyond = self._total_steps is not None and step >= self._total_steps
        if beyond and self.rate == 0 and self.policy.sets_rate and not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step} is beyond total_steps={self._total_steps}: the policy has cooled down, and from here on "
                "the rate is 0; give total_steps all steps of all epochs, or None where they are not known",
                stacklevel=3,
            )
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, self.rate)
        if self.policy.wants(step):
            given = {"train_inputs": train_inputs, "train_targets": train_targets}
            with self.worker.around_step(inputs, targets, step=step, **given):
                yield self.rate
        else:
            yield self.rate
        self.horizon.carry_out(self.policy.horizon(step + 1), inputs, targets, step=step + 1)
        self.estimates = self.worker.poll(step=step)
        self.said = [said for said in map(self.policy.observe, self.estimates) if said]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides about the steps to come: JSON values, and the snapshots' tensors, not copied."""
        return {
            "policy": self.policy.state_dict(),
            "worker": self.worker.state_dict(),
            "horizon": self.horizon.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values, exactly."""
        self.policy.load_state_dict(state["policy"])
        self.worker.load_state_dict(state["worker"])
        self.horizon.load_state_dict(state["horizon"])

    def close(self) -> None:
        """Wait for what is in flight and take every hook off the model."""
        self.worker.close()
