"""One training step: B2 moves the weights; if the policy asks, B1 measures how far they should have moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ops.step_clock import StepClock
from pipeline.device import DevicePair
from stepsize.losses import BCEWithLogits
from stepsize.policies import NO_HORIZON, HorizonPlan, set_learning_rate
from stepsize.worker import Horizon, StepSizeWorker
from trainer.divergence import Checked, NumberCheck, step_unless
from trainer.learner import ProgressiveValidation, TrainedLoss, TrainingPrecision, WeightAverage, weighed_targets
from trainer.ranks import ALONE, Ranks, StepSums


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of one step, still on the device."""

    loss: Tensor
    """() mean loss at θ0."""
    checked: Checked
    """Whether the step was withheld, and why."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Forward, backward and optimizer on B2, with the clock told where the time goes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    worker: StepSizeWorker
    horizon: Horizon
    """Of the worker: what measures many steps at once."""
    average: WeightAverage | None
    clock: StepClock
    loss: TrainedLoss = BCEWithLogits()  # noqa: RUF009 (frozen)
    """The one that the worker measures."""
    precision: TrainingPrecision = TrainingPrecision()  # noqa: RUF009 (frozen)
    progressive: ProgressiveValidation | None = None
    """Told of every batch before it moves the weights."""
    ranks: Ranks = ALONE
    """Those that train together; each has its share of every batch, and its rows of the tables."""
    seed: int = 0
    """Of what a rank of several draws: at each step anew, so that no rank need know what another has drawn."""

    @cached_property
    def check(self) -> NumberCheck:
        """What looks at the step's numbers."""
        return NumberCheck(self.model)

    @cached_property
    def sums(self) -> StepSums:
        """What adds up a step over ranks."""
        return StepSums(self.model, self.ranks)

    def __call__(
        self,
        pair: DevicePair,
        *,
        step: int,
        learning_rate: float,
        measure: bool,
        plan: HorizonPlan = NO_HORIZON,
    ) -> Trained:
        """Trains on `pair.b2` at `learning_rate`; nothing of what it returns is waited for.

        Where an input, the loss or a gradient is not finite the step is withheld: weights, moments and tables stay as
        they are, to the bit, and no α* is made of it. The step counts all the same: the next one has the next number,
        its own rate and its own rows, NAdamW's t and the average's count go on, and the average takes in the weights as
        the step left them.

        With `measure`, B1 is handed to the worker around the optimizer's step; B1 never touches the
        gradients, so the step itself is the same with and without it. `plan` is carried out after the step, on B1.
        """
        inputs = (pair.b2.dense, pair.b2.ids)
        set_learning_rate(self.optimizer, learning_rate)
        if not self.ranks.alone:
            self.ranks.step = step
            self.ranks.batch = (
                *(pair.b2.rows, pair.b2_rows, pair.b1.rows, pair.b1_rows),
                *(pair.position.epoch, pair.position.row),
            )
            torch.manual_seed(hash((self.seed, step, self.ranks.rank)))
        with self.clock.phase("forward"):
            with self.precision.forward(), self.check.forward():
                logits = self.model(*inputs)
            targets = weighed_targets(pair.b2, self.loss)
            loss = self._loss(logits, targets, pair)
            if self.progressive is not None:
                epochs = {"epoch": pair.epoch, "next_epoch": pair.position.epoch}
                weight = None if targets is pair.b2.label else pair.b2.weight
                self.progressive.add(logits, pair.b2.label, weight, step=step, **epochs)
        with self.clock.phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            with self.precision.backward():
                loss.backward()
            checked = self._checked(inputs, loss)
        if measure:
            with self.clock.phase("alpha"):
                measure = self.worker.before_step(
                    (pair.b1.dense, pair.b1.ids),
                    weighed_targets(pair.b1, self.loss),
                    train_inputs=inputs,
                    train_targets=targets,
                    step=step,
                    rows=self._probe_rows(pair),
                )
        with self.clock.phase("optimizer"):
            step_unless(self.optimizer, checked.withheld)
            if self.average is not None:
                self.average.update()
        if measure:
            with self.clock.phase("alpha"):
                self.worker.after_step(void=checked.withheld)
        if plan != NO_HORIZON:
            with self.clock.phase("alpha"):
                b1 = (pair.b1.dense, pair.b1.ids)
                self.horizon.carry_out(
                    plan,
                    b1,
                    weighed_targets(pair.b1, self.loss),
                    step=step + 1,
                    fresh=pair.fresh,
                    rows=self._probe_rows(pair),
                )
        return Trained(loss=checked.loss, checked=checked)

    def _loss(self, logits: Tensor, targets: Tensor, pair: DevicePair) -> Tensor:
        """The mean loss over the batch; of several ranks, this one's part of it, 0 of an empty share."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.ranks.alone:
            return self.loss.mean(logits, targets)
        if not pair.b2.rows:
            return logits.sum()
        return self.loss.mean(logits, targets) * (pair.b2.rows / pair.b2_rows)

    def _checked(self, inputs: tuple[Tensor, Tensor], loss: Tensor) -> Checked:
        if self.ranks.alone:
            return self.check.sizes(inputs, loss)
        return self.check.sizes(inputs, loss, summed=self.sums)

    def _probe_rows(self, pair: DevicePair) -> int | None:
        """How many of its rows of B1 a rank measures on: those among the first `probe_fraction` of all; None: alone."""
        if self.ranks.alone:
            return None
        wanted = math.ceil(self.worker.options.probe_fraction * pair.b1_rows)
        return min(max(wanted - pair.b1_start, 0), pair.b1.rows)


def first_click_rows(inputs: tuple[Any, ...], targets: Tensor, rows: int) -> tuple[tuple[Any, ...], Tensor]:
    """The first `rows` rows of the model's inputs, dense (R, D) and ids (S, R), and of their labels (R,).

    Cut by place: in a batch of S rows, `stepsize.worker.first_rows` would take the ids' columns for rows.
    """
    dense, ids = inputs
    return (dense[:rows], ids[:, :rows]), targets[:rows]
