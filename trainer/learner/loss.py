"""The loss that a run trains, and the model as it answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.device import ModelInputs
from stepsize.losses import BCEWithLogits, WeightedRows
from trainer.learner.loss_config import LossConfig

TrainedLoss = BCEWithLogits | WeightedRows


def build_loss(config: LossConfig) -> TrainedLoss:
    """What the training step goes down and α* is measured of; of `weighed_targets` batches.

    `config` is as `LossConfig.of_data` gives it.
    """
    loss = BCEWithLogits(
        positive_weight=config.positive_weight,
        negative_weight=config.negative_weight,
        label_smoothing=config.label_smoothing,
    )
    return WeightedRows(loss) if config.sample_weights else loss


def weighed_targets(batch: ModelInputs, loss: TrainedLoss) -> Tensor:
    """Labels (R,), or (R, 2) with the rows' weights where the loss is to weigh them."""
    if isinstance(loss, BCEWithLogits):
        return batch.label
    assert batch.weight is not None, "the rows have no weights"
    return torch.stack([batch.label, batch.weight], 1)


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
