"""Which rounding a measuring pass has: of its context's products and not of its logits alone, and what it may shift."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stepsize import StepSizeWorker
from stepsize.estimate import Outcome
from stepsize.losses import BCEWithLogits
from stepsize.measuring.curvature import row_forms
from stepsize.measuring.passes import TF32_EPS, coarsest_eps
from tests.reverse_mode import forms_by_double_backward

AUTOCAST = partial(torch.autocast, "cpu", torch.bfloat16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


@pytest.mark.parametrize("dtype", EPS)
def test_without_a_context_it_is_that_of_the_logits(dtype):
    assert coarsest_eps(torch.zeros(2, dtype=dtype), nullcontext) == EPS[dtype]


def test_autocast_rounds_float32_logits_too_but_not_float64_ones():
    assert coarsest_eps(torch.zeros(2), AUTOCAST) == EPS[torch.bfloat16]
    assert coarsest_eps(torch.zeros(2, dtype=torch.bfloat16), AUTOCAST) == EPS[torch.bfloat16]
    assert coarsest_eps(torch.zeros(2, dtype=torch.float64), AUTOCAST) == EPS[torch.float64]
    assert coarsest_eps(torch.zeros(2), partial(AUTOCAST, enabled=False)) == EPS[torch.float32]
    with AUTOCAST():
        assert coarsest_eps(torch.zeros(2), nullcontext) == EPS[torch.bfloat16], "in force around it as well"


def test_tf32_rounds_float32_products_of_a_gpu():
    def eps(device: str, dtype: torch.dtype) -> float:
        return coarsest_eps(cast(Tensor, SimpleNamespace(device=torch.device(device), dtype=dtype)), nullcontext)

    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = "tf32"
        assert eps("cuda", torch.float32) == TF32_EPS
        assert eps("cuda", torch.bfloat16) == EPS[torch.bfloat16]
        assert eps("cuda", torch.float64) == EPS[torch.float64]
        assert eps("cpu", torch.float32) == EPS[torch.float32]
        products.fp32_precision = "ieee"
        assert eps("cuda", torch.float32) == EPS[torch.float32]
    finally:
        products.fp32_precision = before


class Normalized(nn.Module):
    """The scale of its first layer changes nothing. Its logits are float32, whatever its products are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32, bias=False), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).float()
        return self.last((h / h.square().mean(0).sqrt()).relu()).float()


@pytest.mark.parametrize("method", ["jvp", "secant"])
def test_what_rounding_left_is_flat_although_the_logits_are_float32(method):
    torch.manual_seed(0)
    model = Normalized()
    first = model.first.weight
    worker = StepSizeWorker(
        model, torch.optim.SGD([first], lr=1.0), nn.BCEWithLogitsLoss(), method=method, forward_context=AUTOCAST
    )
    x, y = torch.randn(256, 6), torch.randint(2, (256,)).float()
    with worker.around_step(x, y, step=0), torch.no_grad():
        first.mul_(1.01)
    with worker.around_step(x, y, step=1), torch.no_grad():
        first.add_(torch.randn_like(first))
    undone, moved = worker.poll()
    assert undone.outcome is Outcome.FLAT
    assert moved.outcome in (Outcome.OK, Outcome.ASCENT)


def test_the_curvatures_error_is_that_of_the_products():
    z, t, y = torch.randn(3, 64)
    y = (y > 0).float()
    own, coarse = (row_forms(BCEWithLogits(), z, t, y, eps=eps) for eps in (None, EPS[torch.bfloat16]))
    ratio = coarse.curvature_error / own.curvature_error
    assert ratio.item() == pytest.approx(EPS[torch.bfloat16] / EPS[torch.float32])


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0])
def test_under_autocast_slope_curvature_and_ratio_are_those_of_float64_but_for_its_rounding(rate: float):
    """Against backward passes in float64 along the same change; the unit roundoff of bfloat16 is 2⁻⁸."""
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0)
        )
        loss = nn.BCEWithLogitsLoss()
        x, y = torch.randn(2, 256, 6), torch.randint(2, (2, 256)).float()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        worker = StepSizeWorker(model, optimizer, loss, forward_context=AUTOCAST)
        with AUTOCAST():
            logits = model(x[0])
        loss(logits.float(), y[0]).backward()
        before = copy.deepcopy(model).double()
        with worker.around_step(x[1], y[1], step=0):
            optimizer.step()
        [estimate] = worker.poll()
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        change = [after.detach().double() - was.detach() for after, was in pairs]
        slope, curvature = forms_by_double_backward(before, loss, change, (x[1].double(),), y[1].double())
        allowed = 16 * 2.0**-8
        spread = rows_spread(before, change, x[1].double(), y[1].double())
        assert estimate.slope is not None
        assert estimate.curvature is not None
        assert estimate.relative is not None
        assert abs(estimate.slope - slope) <= allowed * spread
        assert abs(estimate.curvature - curvature) <= allowed * curvature
        assert abs(estimate.relative + slope / curvature) <= allowed * (spread + abs(slope)) / curvature


def rows_spread(model: nn.Module, change: list[Tensor], x: Tensor, y: Tensor) -> float:
    """Mean over rows of |slope|, what a rounding of each row's slope is a share of; dense, in float64."""
    direction: Any = dict(zip(dict(model.named_parameters()), change, strict=True))
    z, tangent, *_ = torch.func.jvp(
        lambda parameters: torch.func.functional_call(model, parameters, (x,)),
        ({name: value.detach() for name, value in model.named_parameters()},),
        (direction,),
    )
    return ((torch.sigmoid(z) - y) * tangent).abs().mean().item()
