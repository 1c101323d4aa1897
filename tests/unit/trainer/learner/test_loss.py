"""The [loss] section: what it refuses, and answers for the whole log where rows of label 0 were left out of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.device import ModelInputs
from stepsize.losses import BCEWithLogits
from trainer.learner import LossConfig, ProgressiveValidation, ShiftedLogits, build_loss, evaluate

RATES = (0.01, 0.03, 0.1, 0.3)
KEPT = 0.1
ROWS = 100_000
"""Of each rate."""


class LogitOfEach(nn.Module):
    """One logit for each category of rows, so that the loss is least where each category's labels alone have it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(RATES), dtype=torch.float64))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.logits[ids[0]] + 0 * dense[:, 0]


def whole_log(seed: int) -> tuple[Tensor, Tensor]:
    """Categories (R,) and labels (R,) of rows clicked at RATES."""
    category = torch.arange(len(RATES)).repeat_interleave(ROWS)
    clicked = torch.rand(len(category), generator=torch.Generator().manual_seed(seed)) < torch.tensor(RATES)[category]
    return category, clicked.double()


def kept_of(category: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The rows that remain of it where one of label 0 is kept with probability KEPT."""
    kept = (label > 0.5) | (torch.rand(len(label), generator=torch.Generator().manual_seed(seed)) < KEPT)
    return category[kept], label[kept]


def inputs_of(category: Tensor, label: Tensor) -> ModelInputs:
    return ModelInputs(torch.zeros(len(label), 1), category[None], label)


def trained(config: LossConfig, category: Tensor, label: Tensor) -> LogitOfEach:
    """At the minimum of the loss, by Newton's steps in each logit alone."""
    model, loss = LogitOfEach(), build_loss(config)
    for _ in range(30):
        z, ones = model(torch.zeros(len(label), 1), category[None]), torch.ones(len(label), dtype=torch.float64)
        slope, curvature = (
            torch.zeros(len(RATES), dtype=torch.float64).index_add(0, category, form(z, label, ones).detach())
            for form in (loss.slope, loss.curvature)
        )
        with torch.no_grad():
            model.logits.sub_(slope / curvature)
    return model


@pytest.mark.parametrize("correction", ["shift", "weight"])
def test_corrected_answers_have_the_rates_of_the_whole_log(correction: Any) -> None:
    config = LossConfig(negatives_kept=KEPT, correction=correction)
    model = trained(config, *kept_of(*whole_log(0), seed=1))
    answered = ShiftedLogits(model, config.shift)(torch.zeros(len(RATES), 1), torch.arange(len(RATES))[None]).sigmoid()
    for rate, found in zip(RATES, answered.tolist(), strict=True):
        # of the log odds: 1 / clicks + 1 / rows kept without one
        error = math.sqrt(1 / (ROWS * rate) + 1 / (ROWS * (1 - rate) * KEPT)) * rate * (1 - rate)
        assert found == pytest.approx(rate, abs=3 * error)
    uncorrected = model.logits.sigmoid() if correction == "shift" else answered
    odds = uncorrected / (1 - uncorrected) * (KEPT if correction == "shift" else 1)
    torch.testing.assert_close(odds / (1 + odds), answered)


def test_scores_of_the_rows_that_are_left_are_those_of_the_whole_log() -> None:
    category, label = whole_log(2)
    config = LossConfig(negatives_kept=KEPT)
    model = ShiftedLogits(trained(config, *kept_of(*whole_log(0), seed=1)), config.shift)
    whole = evaluate(model, [inputs_of(category, label)], split="test")
    rest = inputs_of(*kept_of(category, label, seed=3))
    found = evaluate(model, [rest], split="test", negative_weight=config.evaluated_negative_weight)
    assert found.loss == pytest.approx(whole.loss, rel=0.02)
    assert found.normalized_entropy == pytest.approx(whole.normalized_entropy, rel=0.02)
    assert found.calibration == pytest.approx(whole.calibration, rel=0.02)  # its standard error is 0.006
    assert whole.calibration == pytest.approx(1, abs=0.02)
    assert found.auc == pytest.approx(whole.auc, abs=5e-3)
    assert found.rows == len(rest.label)

    logits, weights = model(rest.dense, rest.ids).detach(), torch.where(rest.label > 0.5, 1.0, 10.0).double()
    losses = functional.binary_cross_entropy_with_logits(logits, rest.label, reduction="none")
    assert found.loss == pytest.approx(((losses * weights).sum() / weights.sum()).item(), rel=1e-12)
    window = ProgressiveValidation(
        window_rows=1,
        once=True,
        device=torch.device("cpu"),
        shift=config.shift,
        negative_weight=config.trained_negative_weight,
    )
    window.add(model.model(rest.dense, rest.ids), rest.label, step=0, epoch=0, next_epoch=0)
    progressive = window.take(0)
    assert progressive is not None
    assert progressive.loss == pytest.approx(found.loss, rel=1e-12)
    assert progressive.calibration == pytest.approx(found.calibration, rel=1e-12)


def test_where_only_the_training_rows_were_left_out_scores_count_every_row_once() -> None:
    config = LossConfig(negatives_kept=KEPT, evaluated_negatives_kept=1.0)
    assert config.shift == math.log(KEPT)
    assert (config.evaluated_negative_weight, config.trained_negative_weight) == (1.0, 1 / KEPT)


def test_nothing_is_corrected_unless_asked_for() -> None:
    for config in (LossConfig(), LossConfig(negatives_kept=KEPT, correction="none"), LossConfig(negatives_kept=1.0)):
        assert config.shift == 0.0
        assert config.negative_weight == config.evaluated_negative_weight == config.trained_negative_weight == 1.0
    assert build_loss(LossConfig()) == build_loss(LossConfig(negatives_kept=KEPT))
    assert build_loss(LossConfig(negatives_kept=0.25, correction="weight")) == BCEWithLogits(negative_weight=4.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"positive_weight": 0.0}, "loss.positive_weight is 0.0; give a number above 0"),
        ({"positive_weight": math.nan}, "loss.positive_weight is nan"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing is 1.0; give a share from 0 to below 1"),
        ({"negatives_kept": 0.0}, "loss.negatives_kept is 0.0; give the share"),
        ({"negatives_kept": 1.5}, "loss.negatives_kept is 1.5; give the share"),
        ({"evaluated_negatives_kept": 0.5, "correction": "none"}, "leave one of them out"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LossConfig(**settings)
