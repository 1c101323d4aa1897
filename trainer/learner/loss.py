"""The loss that a run trains, and the model as it answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stepsize.losses import BCEWithLogits
from trainer.learner.loss_config import LossConfig


def build_loss(config: LossConfig) -> BCEWithLogits:
    """What the training step goes down and α* is measured of."""
    return BCEWithLogits(
        positive_weight=config.positive_weight,
        negative_weight=config.negative_weight,
        label_smoothing=config.label_smoothing,
    )


class ShiftedLogits(nn.Module):
    """`model` with `shift` added to each of its logits, in their precision.

    With ln(share) it turns the odds of a log that kept that share of its rows of label 0 into those of the whole log:
    q becomes q / (q + (1 − q) / share). Source: He et al. 2014, Practical Lessons from Predicting Clicks on Ads at
    Facebook, section 6.3.
    """

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, *inputs: Any) -> Tensor:
        """Logits (R,) of the model's own inputs."""
        return self.model(*inputs) + self.shift
