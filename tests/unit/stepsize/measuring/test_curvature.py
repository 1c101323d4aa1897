"""Moments over rows, the rounding that makes a direction flat, and which precision sets it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from stepsize import BCEWithLogits, Outcome, SquaredError, StepSizeWorker
from stepsize.measuring.curvature import SUMMARY, RowForms, row_forms, summarize
from tests.cases import CASES


def test_a_summary_has_means_and_the_covariance_of_the_means():
    rng = np.random.default_rng(1)
    loss, slope, curvature = rng.normal(size=(3, 50))
    forms = RowForms(
        loss=torch.tensor(loss),
        slope=torch.tensor(slope),
        curvature=torch.tensor(curvature),
        curvature_error=torch.tensor(0.25),
    )
    found = dict(zip(SUMMARY, summarize(forms).tolist(), strict=True))
    spread = np.cov(slope, curvature) / 50
    assert found == pytest.approx(
        {
            "rows": 50,
            "loss": loss.mean(),
            "slope": slope.mean(),
            "curvature": curvature.mean(),
            "curvature_error": 0.25,
            "slope_variance": spread[0, 0],
            "curvature_variance": spread[1, 1],
            "covariance": spread[0, 1],
        },
        rel=1e-12,
    )


def test_one_row_has_no_spread():
    forms = row_forms(SquaredError(), torch.ones(1), torch.ones(1), torch.zeros(1))
    found = dict(zip(SUMMARY, summarize(forms).tolist(), strict=True))
    assert found["curvature"] == 2
    assert math.isnan(found["slope_variance"])


def test_half_precision_logits_are_widened_but_their_rounding_is_remembered():
    z, t, y = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    y = (y > 0).float()
    wide, half = (row_forms(BCEWithLogits(), z.to(d), t.to(d), y) for d in (torch.float32, torch.bfloat16))
    assert half.slope.dtype is torch.float32
    torch.testing.assert_close(half.slope, wide.slope, rtol=2e-2, atol=2e-2)
    assert half.curvature_error > 1e4 * wide.curvature_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-1])
def test_a_step_that_normalization_undoes_is_flat(dtype, scale):
    """Scaling what comes before BatchNorm changes no logit; the tangent that is left is rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32, bias=False), nn.BatchNorm1d(32, eps=1e-30), nn.ReLU(), nn.Linear(32, 1)).to(
        dtype
    )
    first: nn.Parameter = model[0].weight  # pyright: ignore[reportAssignmentType]
    worker = StepSizeWorker(model, torch.optim.SGD([first], lr=1.0), nn.BCEWithLogitsLoss())
    x, y = torch.randn(256, 6, dtype=dtype), torch.randint(2, (256,)).to(dtype)
    with worker.around_step(x, y, step=0), torch.no_grad():
        first.mul_(1 + scale)
    with worker.around_step(x, y, step=1), torch.no_grad():
        first.add_(max(scale, 1e-5) * torch.randn_like(first))
    undone, moved = worker.poll()
    assert undone.outcome is Outcome.FLAT
    assert undone.relative is None
    assert moved.outcome in (Outcome.OK, Outcome.ASCENT)


def test_a_tiny_step_is_not_flat():
    """1e-6 of a weight's size is far above the rounding of the pass, even in float32."""
    case = CASES["mlp_cross_entropy"]
    model = case.model().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    worker = StepSizeWorker(model, optimizer, case.loss)
    (x,), y = case.batch(1)
    case.torch_loss(model(x.float()), y).backward()
    with worker.around_step(x.float(), y, step=0):
        optimizer.step()
    [estimate] = worker.poll()
    assert estimate.outcome is Outcome.OK
