"""Autograd functions of one's own: measured where they have a formula, refused where a tangent is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stepsize import MeasurementError, Outcome
from tests.measured import assert_same, mlp, one_estimate, rows_of


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * gradients[0]


class WithOwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(self.inner(x))  # pyright: ignore[reportReturnType]


def test_a_function_without_forward_mode_is_refused_with_a_way_out():
    x, y = rows_of(6)
    with pytest.raises(MeasurementError, match='method="secant"'):
        one_estimate(WithOwnFunction(), x, y)
    assert one_estimate(WithOwnFunction(), x, y, method="secant").outcome is Outcome.OK


class ForeignCheckpoint(torch.autograd.Function):
    """What other libraries' checkpoints do: run a function that reads parameters which torch does not see passed."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.x = function, x
        return function(x)

    @staticmethod
    def backward(ctx, *gradients):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, *gradients)
        return None, x.grad


class OwnSquare(torch.autograd.Function):
    """A function that knows forward mode, whatever it reads."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.square()

    @staticmethod
    def backward(ctx, *gradients):
        return 2 * ctx.saved_tensors[0] * gradients[0]

    @staticmethod
    def jvp(ctx, *tangents):
        return 2 * ctx.saved_tensors[0] * tangents[0]


class Around(nn.Module):
    """`function` of the hidden layer, in the middle of a model whose other parts keep their tangents."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner, self.function = mlp(), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[3](self.inner[2](self.function(self.inner[0], x)))


def by_a_foreign_checkpoint(layer: nn.Module, x: torch.Tensor) -> Any:
    return ForeignCheckpoint.apply(layer, x)


def test_a_function_that_reads_parameters_by_itself_is_refused():
    """The layer behind it still has a tangent, so that the logits do; without care α* is that of half the step."""
    model = Around(by_a_foreign_checkpoint)
    x, y = rows_of(6)
    x.requires_grad_()
    applied = vars(torch.autograd.Function)["apply"]
    with pytest.raises(MeasurementError, match="ForeignCheckpoint, which has no jvp"):
        one_estimate(model, x, y)
    assert vars(torch.autograd.Function)["apply"] is applied
    assert one_estimate(model, x, y, method="secant").slope is not None


@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_a_function_that_looks_rows_up_by_itself_is_refused(tables):
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Embedding(500, 6), nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> Any:
            ids = x[:, 0].abs().long()
            return self.scale(ForeignCheckpoint.apply(lambda x: self.table(ids) + x, x)).squeeze(1)

    x, y = rows_of(6)
    x.requires_grad_()
    with pytest.raises(MeasurementError, match="ForeignCheckpoint, which has no jvp"):
        one_estimate(Looked(), x, y, tables=tables)


def test_functions_that_know_forward_mode_or_read_nothing_that_moves_are_let_be():
    x, y = rows_of(6)
    x.requires_grad_()
    squared = one_estimate(Around(lambda layer, x: layer(x).square()), x, y)
    assert_same(one_estimate(Around(lambda layer, x: OwnSquare.apply(layer(x))), x, y), squared)
    doubled = one_estimate(Around(lambda layer, x: layer(2 * x)), x, y)
    assert_same(one_estimate(Around(lambda layer, x: layer(Doubled.apply(x))), x, y), doubled)
