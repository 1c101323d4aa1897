"""Loss, AUC and normalized entropy against scikit-learn and against counting every pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.device.model_inputs import ModelInputs
from trainer.learner.config import ModelConfig
from trainer.learner.model import build_model
from trainer.learner.scoring.evaluation import HISTOGRAM_BINS, HISTOGRAM_LIMIT, Evaluator, evaluate


def scores(rows: int, *, decimals: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(rows)
    label = (random.random(rows) < 0.25).astype(np.float32)
    logits = (random.normal(-1.2, 1.0, rows) + 0.8 * label).astype(np.float32)
    return torch.from_numpy(logits if decimals is None else logits.round(decimals)), torch.from_numpy(label)


def add_in_batches(evaluator: Evaluator, logits: torch.Tensor, label: torch.Tensor, rows: int = 97) -> None:
    for one, other in zip(logits.split(rows), label.split(rows), strict=True):
        evaluator.add(one, other)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_numbers_equal_scikit_learns(decimals: int | None) -> None:
    logits, label = scores(5000, decimals=decimals)
    evaluator = Evaluator()
    add_in_batches(evaluator, logits, label)
    found = evaluator.result("validation")
    probability = 1.0 / (1.0 + np.exp(-logits.double().numpy()))
    rate = label.mean().item()
    assert found.rows == 5000
    assert found.loss == pytest.approx(log_loss(label.numpy(), probability), rel=1e-12)
    assert found.auc == pytest.approx(roc_auc_score(label.numpy(), logits.numpy()), abs=1e-14)
    assert found.auc_error == 0.0
    assert found.normalized_entropy == pytest.approx(
        found.loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)), rel=1e-6
    )


def test_auc_counts_pairs_and_ties_half() -> None:
    evaluator = Evaluator()
    evaluator.add(torch.tensor([0.0, 1.0, 1.0, -0.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]))
    # positives 1 and 0 against negatives 0, 1, 2: (1 + ½ + 0) + (½ + 0 + 0)
    assert evaluator.result("test").auc == pytest.approx(2.0 / 6.0)


def test_rows_beyond_the_exact_limit_are_counted_within_the_stated_error() -> None:
    logits, label = scores(20_000)
    evaluator = Evaluator(exact_rows=1000)
    add_in_batches(evaluator, logits, label, rows=333)
    found = evaluator.result("train")
    exact = roc_auc_score(label.numpy(), logits.numpy())
    assert found.auc is not None
    assert 0.0 < found.auc_error < 1e-5
    assert abs(found.auc - exact) <= found.auc_error
    # and where bins hold many rows the bound is wide, and still holds
    spread = logits * (HISTOGRAM_LIMIT / HISTOGRAM_BINS)
    evaluator = Evaluator(exact_rows=1000)
    add_in_batches(evaluator, spread, label, rows=333)
    found = evaluator.result("train")
    assert found.auc is not None
    assert found.auc_error > 0.05
    assert abs(found.auc - roc_auc_score(label.numpy(), spread.numpy())) <= found.auc_error


def test_logits_beyond_the_histogram_are_counted_at_its_ends() -> None:
    evaluator = Evaluator(exact_rows=0)
    evaluator.add(torch.tensor([-1e30, 1e30, -math.inf, math.inf]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert evaluator.result("test").auc == 1.0


def test_one_label_alone_has_no_auc_and_no_normalized_entropy() -> None:
    evaluator = Evaluator()
    evaluator.add(torch.tensor([0.3, -0.1]), torch.zeros(2))
    found = evaluator.result("test")
    assert (found.auc, found.normalized_entropy) == (None, None)
    assert found.loss == pytest.approx((math.log1p(math.exp(0.3)) + math.log1p(math.exp(-0.1))) / 2)


def test_a_nan_logit_shows_in_the_loss_and_leaves_no_auc() -> None:
    evaluator = Evaluator()
    evaluator.add(torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 1.0]))
    found = evaluator.result("test")
    assert math.isnan(found.loss)
    assert found.auc is None


def test_the_loss_of_confident_and_wrong_rows_is_finite() -> None:
    evaluator = Evaluator()
    evaluator.add(torch.tensor([-200.0]), torch.tensor([1.0]))
    assert evaluator.result("test").loss == 200.0


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="'test' has no rows"):
        Evaluator().result("test")


def test_a_model_is_evaluated_without_dropout_and_left_in_its_mode() -> None:
    config = ModelConfig(table_rows=50, embedding_dim=4, bottom=(8, 4), top=(8, 1), dropout=0.5)
    model = build_model(config, dense_features=3, sparse_features=5, seed=0)
    generator = torch.Generator().manual_seed(1)
    batches = [
        ModelInputs(
            torch.rand(rows, 3, generator=generator),
            torch.randint(0, 50, (5, rows), generator=generator, dtype=torch.int32),
            (torch.rand(rows, generator=generator) < 0.5).float(),
        )
        for rows in (7, 7, 2)
    ]
    result = evaluate(model, batches, split="validation")
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch.dense, batch.ids) for batch in batches]).double().numpy()
    label = torch.cat([batch.label for batch in batches]).numpy()
    losses = np.log1p(np.exp(np.where(label == 1.0, -logits, logits)))
    assert (result.split, result.rows) == ("validation", 16)
    assert result.loss == pytest.approx(losses.mean(), rel=1e-12)
    evaluate(model, batches, split="validation")
    assert not model.training
