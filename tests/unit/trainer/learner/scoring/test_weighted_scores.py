"""Scores of rows that count more or less often than once, against each row written out as often as it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.learner import Evaluation, Evaluator, ProgressiveValidation

NEGATIVES = 5.0


def rows(seed: int = 0, count: int = 900) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, many of them tied, labels, and whole weights from 1 to 6."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(-1.0, 1.5, count), 1).astype(np.float32)
    label = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return tuple(torch.from_numpy(each) for each in (logits, label, rng.integers(1, 7, count).astype(np.float32)))  # pyright: ignore[reportReturnType]


def evaluated(*, written_out: bool, exact_rows: int = 1 << 20) -> Evaluation:
    evaluator = Evaluator(negative_weight=NEGATIVES, exact_rows=exact_rows)
    for seed in range(3):
        logits, label, weight = rows(seed)
        if written_out:
            times = weight.long()
            evaluator.add(logits.repeat_interleave(times), label.repeat_interleave(times))
        else:
            evaluator.add(logits, label, weight)
    return evaluator.result("test")


def progressive(*, written_out: bool) -> Evaluation:
    window = ProgressiveValidation(
        window_rows=1 if not written_out else 3,
        once=True,
        device=torch.device("cpu"),
        shift=0.25,
        negative_weight=NEGATIVES,
        weighted=not written_out,
    )
    logits, label, weight = rows()
    logits[3] = torch.nan  # is left out, with its weight
    if written_out:
        times = weight.long()
        logits, label = logits.repeat_interleave(times), label.repeat_interleave(times)
    window.add(logits, label, None if written_out else weight, step=0, epoch=0, next_epoch=0)
    found = window.take(0)
    assert found is not None
    return found


def assert_alike(weighted: Evaluation, written_out: Evaluation) -> None:
    for name in ("loss", "auc", "normalized_entropy", "calibration"):
        assert getattr(weighted, name) == pytest.approx(getattr(written_out, name), rel=1e-12)
    assert weighted.weight == written_out.rows
    assert written_out.weight is None
    assert "weight" not in written_out.values()
    assert weighted.values()["weight"] == weighted.weight


def test_a_row_counts_as_often_as_its_weight_says() -> None:
    weighted = evaluated(written_out=False)
    assert_alike(weighted, evaluated(written_out=True))
    assert weighted.rows == 2700
    assert weighted.auc_error == 0.0


def test_the_auc_of_many_rows_lies_within_its_bound() -> None:
    exact, binned = evaluated(written_out=False), evaluated(written_out=False, exact_rows=1000)
    assert exact.auc is not None
    assert binned.auc is not None
    assert abs(exact.auc - binned.auc) <= binned.auc_error + 1e-12
    assert binned.auc == pytest.approx(exact.auc, rel=1e-6)
    assert binned.loss == exact.loss


def test_progressive_validation_weighs_rows_too() -> None:
    weighted = progressive(written_out=False)
    assert_alike(weighted, progressive(written_out=True))
    assert weighted.rows == 899


def test_an_open_window_of_weighted_rows_is_continued() -> None:
    def window() -> ProgressiveValidation:
        return ProgressiveValidation(window_rows=1500, once=True, device=torch.device("cpu"), weighted=True)

    whole, cut, resumed = window(), window(), window()
    for each in (whole, cut):
        logits, label, weight = rows(0)
        each.add(logits, label, weight, step=0, epoch=0, next_epoch=0)
    resumed.load_state_dict(cut.state_dict())
    for each in (whole, resumed):
        logits, label, weight = rows(1)
        each.add(logits, label, weight, step=1, epoch=0, next_epoch=0)
    found = whole.take(1)
    assert found is not None
    assert found.rows == 1800
    assert found == resumed.take(1)
