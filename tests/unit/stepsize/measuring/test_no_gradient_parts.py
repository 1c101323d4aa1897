"""Parts of a model that take no gradient, or take one themselves: forward mode sees what a backward pass sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stepsize import MeasurementError, Outcome
from tests.reverse_mode import measured_and_expected

CE = nn.CrossEntropyLoss()


class TwoLayers(nn.Module):
    """x (R, 6) → (R, 4), with something done to the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).tanh()))


class StraightThrough(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            error = torch.round(4 * h) / 4 - h
        return h + error


class Detached(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        return h + (h.sign() - h).detach() * h.data.abs()


class Scaled(TwoLayers):
    @torch.no_grad()
    def scale(self, h: Tensor) -> Tensor:
        return h.std()

    def between(self, h: Tensor) -> Tensor:
        return h / self.scale(h)


class SwitchedOff(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        factor = h.mean(1, keepdim=True).exp()
        torch.set_grad_enabled(True)
        return h * factor


class InferenceInside(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        with torch.inference_mode():
            error = h.round() - h
        return h + error


class ViewWithoutGradient(TwoLayers):
    """The view's base has a tangent, and a view taken without gradients must not find it again."""

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            first, rest = h[:, :4], h.split(4, 1)[1]
        return h * torch.cat([first, rest], 1).exp()


class InPlaceWithoutGradient(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        h = h * 1.5
        with torch.no_grad():
            h.clamp_(-0.5, 0.5)
        return h


class GradientOnAgain(TwoLayers):
    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            constant = h.cos()
            with torch.enable_grad():
                moving = h.sin()
        return moving * constant


class OnlyInTraining(TwoLayers):
    """Models ask whether gradients are on to tell training from serving."""

    def between(self, h: Tensor) -> Tensor:
        return h.square() if torch.is_grad_enabled() else h


class Force(nn.Module):
    """The gradient of an energy is the output, as in models of molecules."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return self.head(force)


class Inner(nn.Module):
    """Takes a gradient step in its own weights on the way, as in meta-learning."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(self.a(x).square().mean(), self.a.weight, create_graph=True)
        return x @ (self.a.weight - 0.1 * g).T


class ForwardInside(nn.Module):
    """Uses forward mode itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(self.a, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("model_class", [Inner, ForwardInside])
def test_what_forward_mode_cannot_run_is_refused_and_the_secant_can(model_class):
    torch.manual_seed(1)
    g = torch.Generator().manual_seed(0)
    batches = [((torch.randn(24, 6, generator=g).double(),), torch.randint(4, (24,), generator=g)) for _ in range(2)]
    with pytest.raises(MeasurementError, match=r"fails in forward mode: .*secant"):
        measured_and_expected(model_class().double(), CE, batches[0], batches[1])
    estimate, slope, curvature = measured_and_expected(
        model_class().double(), CE, batches[0], batches[1], method="secant", rate=1e-6
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-3)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-3)


class EmbeddedQuantized(nn.Module):
    """A table kept by rows, rounded straight through; ids (R, 3) → (R, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(500, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids).mean(1)
        with torch.no_grad():
            error = h.round() - h
        return self.head(h + error)


MODELS = [
    *(StraightThrough, Detached, Scaled, SwitchedOff, InferenceInside, ViewWithoutGradient),
    *(InPlaceWithoutGradient, GradientOnAgain, OnlyInTraining, Force, EmbeddedQuantized),
]


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("self_check", [True, False])
def test_slope_and_curvature_are_those_of_backward_passes(model_class, self_check):
    torch.manual_seed(1)
    model, g = model_class().double(), torch.Generator().manual_seed(0)
    if model_class is EmbeddedQuantized:
        batches = [
            ((torch.randint(500, (24, 3), generator=g),), torch.randint(4, (24,), generator=g)) for _ in range(2)
        ]
    else:
        batches = [
            ((torch.randn(24, 6, generator=g, dtype=torch.float64),), torch.randint(4, (24,), generator=g))
            for _ in range(2)
        ]
    estimate, slope, curvature = measured_and_expected(model, CE, *batches, self_check=self_check)
    assert estimate.outcome in (Outcome.OK, Outcome.ASCENT)
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)
    assert torch.is_grad_enabled()
    assert torch._C._is_fwd_grad_enabled()
