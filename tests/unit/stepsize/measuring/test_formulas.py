"""Operations whose forward mode is wrong, lost or not finite in torch itself: repaired, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepsize import MeasurementError, Outcome
from tests.reverse_mode import measured_and_expected

CE = nn.CrossEntropyLoss()


class Through(nn.Module):
    """x (R, 6) → (R, 4) by way of `operation` on the hidden (R, 8)."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(6, 8), nn.Linear(8, 4), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operation(self.a(x)))


def measured(operation: Any, **options: Any):
    torch.manual_seed(0)
    batches = [((torch.randn(24, 6).double(),), torch.randint(4, (24,))) for _ in range(2)]
    return measured_and_expected(Through(operation).double(), CE, batches[0], batches[1], **options)


def products(h: Tensor) -> Tensor:
    index = torch.arange(8).remainder(4).expand_as(h)
    return torch.cat([h[:, :4].new_zeros(len(h), 4).scatter_reduce(1, index, h, "prod", include_self=False)] * 2, 1)


def products_in_place(h: Tensor) -> Tensor:
    index = torch.arange(8).remainder(4).expand_as(h)
    found = torch.ones(len(h), 4, dtype=h.dtype).scatter_reduce_(1, index, h, reduce="prod")
    return torch.cat([found, found], 1)


def strided(h: Tensor) -> Tensor:
    return torch.as_strided_scatter(h, h[:, :1], (len(h), 1), (8, 1))


@pytest.mark.parametrize("operation", [products, products_in_place, strided])
@pytest.mark.parametrize("self_check", [True, False])
def test_an_operation_whose_forward_mode_is_wrong_is_refused(operation, self_check):
    with pytest.raises(MeasurementError, match=r"forward mode is wrong for .*secant"):
        measured(operation, self_check=self_check)


def test_the_way_out_is_open():
    """The difference of logits needs no formula: at a short step it is near what backward passes see."""
    estimate, slope, curvature = measured(products, method="secant", rate=1e-5)
    assert estimate.slope == pytest.approx(slope, rel=1e-2)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-2)


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: torch.zeros_like(h).scatter_reduce(1, torch.arange(8).expand_as(h), h, "amax", include_self=False),
        lambda h: torch.zeros_like(h).scatter_reduce(1, torch.arange(8).expand_as(h), h, reduce="sum"),
        lambda h: h.cumprod(1),
        lambda h: h.sort(1).values,
    ],
)
def test_their_neighbours_are_measured(operation):
    estimate, slope, curvature = measured(operation)
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def packed(h: Tensor) -> Tensor:
    lengths = torch.arange(len(h)).remainder(4) + 1
    sequence = nn.utils.rnn.pack_padded_sequence(
        h.reshape(len(h), 4, 2), lengths, batch_first=True, enforce_sorted=False
    )
    return nn.utils.rnn.pad_packed_sequence(sequence, batch_first=True, total_length=4)[0].reshape(len(h), 8)


def weight_norm(dim: int | None) -> Any:
    torch.manual_seed(1)
    return nn.utils.parametrizations.weight_norm(nn.Linear(8, 8), dim=dim)  # pyright: ignore[reportArgumentType]


def channels_last(h: Tensor) -> Tensor:
    images = h.reshape(len(h), 2, 2, 2).contiguous(memory_format=torch.channels_last)
    return nn.functional.group_norm(images, 2).reshape(len(h), 8)


@pytest.mark.parametrize("operation", [packed, weight_norm(0), weight_norm(1), weight_norm(None), channels_last])
def test_an_operation_without_a_formula_is_written_out(operation):
    estimate, slope, curvature = measured(operation)
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def reversed_gradient(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda g: -g)
    return h


def unsymmetric(h: Tensor) -> Tensor:
    """Reads one triangle, where a backward pass spreads the gradient over both."""
    square = (h.unsqueeze(2) * h.unsqueeze(1)).tril() + 20 * torch.eye(8, dtype=h.dtype)
    return torch.linalg.cholesky(square).sum(2)


def tied(h: Tensor) -> Tensor:
    """Overlapping windows write to one place, where a backward pass reads that place for each of them."""
    pooled, where = torch.nn.functional.max_pool1d(h.unsqueeze(1), [3], [1], return_indices=True)
    return torch.nn.functional.max_unpool1d(pooled, where, [3], [1]).squeeze(1)


@pytest.mark.parametrize("operation", [reversed_gradient, unsymmetric, tied])
def test_the_self_check_finds_what_no_list_has(operation):
    with pytest.raises(MeasurementError, match=r"self-check: the measured slope .* is not that of a backward pass"):
        measured(operation)
    assert measured(operation, self_check=False)[0].slope is not None


class Repaired(nn.Module):
    """Attention over tokens (R, 5, 6), of which a row may have none at all; `repair` makes zeros of the NaN."""

    def __init__(self, repair: Any) -> None:
        super().__init__()
        self.q, self.o, self.repair = nn.Linear(6, 6), nn.Linear(6, 4), repair

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(tokens) @ tokens.mT).masked_fill(~mask[:, None], -torch.inf)
        return self.o((self.repair(scores.softmax(-1)) @ tokens).mean(1) + tokens.mean(1))


def repaired(repair: Any):
    torch.manual_seed(0)
    mask = torch.rand(24, 5) > 0.3
    mask[:, 0], mask[0] = True, False
    batches = [((torch.randn(24, 5, 6).double(), mask), torch.randint(4, (24,))) for _ in range(2)]
    return measured_and_expected(Repaired(repair).double(), CE, batches[0], batches[1])


@pytest.mark.parametrize(
    "repair",
    [
        lambda p: p.nan_to_num(0.0),
        lambda p: torch.nan_to_num(p, nan=0.0),
        lambda p: p.clone().nan_to_num_(0.0),
        lambda p: torch.where(p.isnan(), 0.0, p),
        lambda p: p.masked_fill(p.isnan(), 0.0),
    ],
    ids=["method", "function", "in place", "where", "masked_fill"],
)
def test_a_softmax_that_is_repaired_is_measured(repair):
    """The expected numbers are those of the repair whose second derivatives are finite too."""
    estimate, _, _ = repaired(repair)
    _, slope, curvature = repaired(lambda p: torch.where(p.isnan(), 0.0, p))
    assert estimate.outcome in (Outcome.OK, Outcome.ASCENT)
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)


def test_a_number_that_is_finite_in_backward_alone_says_what_to_do():
    def inverted(h: Tensor) -> Tensor:
        return h + (h * 0).sqrt() * 0  # the derivative of a root at 0, times 0

    class FiniteBackward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            spoiled = inverted(h)
            if spoiled.requires_grad:
                spoiled.register_hook(lambda g: g.nan_to_num(0.0))
                h.register_hook(lambda g: g.nan_to_num(0.0))
            return self.b(spoiled)

    torch.manual_seed(0)
    batches = [((torch.randn(24, 6).double(),), torch.randint(4, (24,))) for _ in range(2)]
    with pytest.raises(MeasurementError, match=r"0 · inf.*secant"):
        measured_and_expected(FiniteBackward().double(), CE, batches[0], batches[1])
