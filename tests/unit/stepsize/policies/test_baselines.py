"""PAL, SGD-BB, SPS and L4 against each method written out by hand on small noisy quadratics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stepsize.policies.baselines import (
    L4,
    PAL,
    SGDBB,
    SPS,
    barzilai_borwein_rate,
    l4_rate,
    parabolic_length,
    polyak_rate,
)

H = np.diag([3.0, 1.0, 0.2])
START = np.array([1.0, -2.0, 3.0])
SHIFTS = np.random.default_rng(0).normal(scale=0.3, size=(60, 3))
"""A batch's loss is ½(x − shift)ᵀH(x − shift): the gradient is noisy and the least loss is 0."""


def loss_of(x: np.ndarray, step: int) -> float:
    return float(0.5 * (x - SHIFTS[step]) @ H @ (x - SHIFTS[step]))


def gradient_of(x: np.ndarray, step: int) -> np.ndarray:
    return H @ (x - SHIFTS[step])


class Problem:
    """The same in torch, float64, its three coordinates in two parameters."""

    def __init__(self, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        self.parts = [torch.tensor(part, requires_grad=True) for part in (START[:1], START[1:])]
        self.optimizer = make(list(self.parts))

    @property
    def x(self) -> np.ndarray:
        return torch.cat([part.detach() for part in self.parts]).numpy()

    def loss(self, step: int) -> Tensor:
        e = torch.cat(self.parts) - torch.from_numpy(SHIFTS[step])
        return 0.5 * e @ torch.from_numpy(H) @ e

    def backward(self, step: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(step)
        loss.backward()
        return loss


def sgd(momentum: float = 0.0) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=momentum)


def test_pal_is_the_published_method_around_sgd_with_momentum():
    problem = Problem(sgd(momentum=0.4))
    rule = PAL(problem.optimizer, trial=0.1, longest=1.5)
    x, m = START.copy(), np.zeros(3)
    for step in range(40):
        g = gradient_of(x, step)
        m = 0.4 * m + g
        u, b = -m / np.linalg.norm(m), -g @ m / np.linalg.norm(m)
        a = (loss_of(x + 0.1 * u, step) - loss_of(x, step) - b * 0.1) / 0.1**2
        s = min(-b / (2 * a) / 0.6 if a > 0 else 0.1, 1.5) if b < 0 else 0.0
        x = x + s * u
        loss = problem.backward(step)
        assert rule.step(loss, lambda step=step: problem.loss(step)) == pytest.approx(s, rel=1e-8)
        assert problem.x == pytest.approx(x, rel=1e-8, abs=1e-12)


def test_pal_lands_on_the_minimum_along_any_direction_of_a_quadratic():
    """With nothing stretched the slope along the direction is zero at the end of the step."""
    problem = Problem(lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    rule = PAL(problem.optimizer, trial=0.1, longest=100.0, stretch=1.0)
    before, loss = problem.x.copy(), problem.backward(0)
    length = rule.step(loss, lambda: problem.loss(0))
    d = problem.x - before
    assert np.linalg.norm(d) == pytest.approx(length)
    assert gradient_of(problem.x, 0) @ d == pytest.approx(0.0, abs=1e-9)
    assert abs(d) == pytest.approx(np.full(3, length / math.sqrt(3)), rel=1e-6), "Adam's first direction: the signs"


@pytest.mark.parametrize(
    ("losses", "slope", "expected"),
    [
        ((1.0, 0.75), -0.5, 2 * 0.5 / (2 * 0.25)),  # a = 0.25, κ = 2
        ((1.0, 0.2), -0.5, 1.0),  # opens downwards
        ((1.0, 0.5), -0.5, 1.0),  # a straight line
        ((1.0, 0.501), -0.5, 3.0),  # nearly straight: bounded
        ((1.0, 0.5), 0.0, 0.0),
        ((1.0, 1.5), 0.1, 0.0),
        ((1.0, math.nan), -0.5, 0.0),
        ((1.0, math.inf), -0.5, 0.0),
        ((math.nan, 1.0), -0.5, 0.0),
        ((1.0, 0.5), math.nan, 0.0),
    ],
)
def test_parabolic_length(losses, slope, expected):
    loss, there = losses
    found = parabolic_length(loss, there, slope, trial=1.0, longest=3.0, stretch=2.0)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("there", [math.nan, math.inf])
def test_pal_takes_its_trial_step_back_where_the_loss_is_not_finite(there):
    problem = Problem(sgd(momentum=0.4))
    before, seen = problem.x.copy(), []

    def evaluate() -> float:
        seen.append(problem.x.copy())
        return there

    assert PAL(problem.optimizer).step(problem.backward(0), evaluate) == 0.0
    assert np.linalg.norm(seen[0] - before) == pytest.approx(1.0), "the trial step had been taken"
    assert (problem.x == before).all()


def test_pal_stays_where_a_step_is_not_finite_or_zero():
    problem = Problem(sgd())
    before = problem.x.copy()
    problem.backward(0)
    for value in (0.0, math.nan):
        for part in problem.parts:
            part.grad = torch.full_like(part, value)
        assert PAL(problem.optimizer).step(1.0, lambda: pytest.fail("nothing to try")) == 0.0
        assert (problem.x == before).all()


@pytest.mark.parametrize("beta", [None, 0.4])
def test_sgd_bb_is_the_method_written_out(beta):
    problem = Problem(sgd())
    rule = SGDBB(problem.optimizer, steps=12, beta=beta)
    x, rate, last = START.copy(), 0.05, None
    for series in range(5):
        average = np.zeros(3)
        for step in range(12 * series, 12 * series + 12):
            g = gradient_of(x, step)
            average = (1 - (beta or 10 / 12)) * average + (beta or 10 / 12) * g
            x = x - rate * g
            problem.backward(step)
            assert rule.step() == pytest.approx(rate, rel=1e-9)
            assert problem.x == pytest.approx(x, rel=1e-9, abs=1e-12)
        if last is not None:
            s, y = x - last[0], average - last[1]
            rate = (s @ s) / (12 * abs(s @ y))
        assert (rate == 0.05) == (series == 0)
        last = x, average


def test_sgd_bb_finds_the_curvature_of_a_noiseless_parabola():
    """But for the step by which the gradients lag behind: x falls by 4 % in one."""
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.01)
    rule = SGDBB(optimizer, steps=1)
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * 4.0 * x.square()).sum().backward()
        rule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.96 / 4)


def test_barzilai_borwein_rate():
    assert barzilai_borwein_rate(2.0, -0.5, 10) == pytest.approx(0.4)
    assert barzilai_borwein_rate(2.0, 0.0, 10) is None


def test_sgd_bb_keeps_its_rate_where_nothing_moves():
    x = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.01)
    rule = SGDBB(optimizer, steps=1)
    for _ in range(3):
        x.grad = torch.zeros(2)
        assert rule.step() == 0.01


def test_sps_is_the_method_written_out():
    problem = Problem(sgd())
    rule = SPS(problem.optimizer, initial_rate=0.3, growth=1.1)
    x, rate, capped = START.copy(), 0.3, 0
    for step in range(40):
        g = gradient_of(x, step)
        polyak = loss_of(x, step) / (0.5 * g @ g + 1e-8)
        capped += polyak > 1.1 * rate
        rate = min(1.1 * rate, polyak)
        x = x - rate * g
        assert rule.step(problem.backward(step)) == pytest.approx(rate, rel=1e-9)
        assert problem.x == pytest.approx(x, rel=1e-9, abs=1e-12)
    assert 0 < capped < 40, "both sides of the minimum were seen"


def test_polyak_rate():
    assert polyak_rate(3.0, 4.0, 100.0, eps=0.0) == pytest.approx(1.5)
    assert polyak_rate(3.0, 4.0, 1.0) == pytest.approx(2 ** (1 / 500))
    assert polyak_rate(0.0, 0.0, 1.0) == 0.0


def reference_l4(x: np.ndarray, direction: Callable[[np.ndarray], np.ndarray], steps: int):
    """L4's steps written out: yields (rate, x) of each."""
    average, least = np.zeros(3), 0.75 * loss_of(x, 0)
    for step in range(steps):
        loss, g = loss_of(x, step), gradient_of(x, step)
        least = min(least * (1 + 1 / 1000), loss) if step else least
        average = 0.9 * average + 0.1 * g
        v = direction(g)
        rate = 0.15 * (loss - 0.9 * least) / (average / (1 - 0.9 ** (step + 1)) @ v + 1e-12)
        x = x - rate * v
        yield rate, x


class AdamDirection:
    """m̂ / (√v̂ + ε) as in the paper."""

    def __init__(self) -> None:
        self.m, self.v, self.t = np.zeros(3), np.zeros(3), 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        return self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_l4_is_the_method_written_out(name):
    make = sgd() if name == "sgd" else lambda parameters: torch.optim.Adam(parameters, lr=123.0)
    problem = Problem(make)
    rule = L4(problem.optimizer)
    direction = (lambda g: g) if name == "sgd" else AdamDirection()
    for step, (rate, x) in enumerate(reference_l4(START.copy(), direction, 25)):
        assert rule.step(problem.backward(step)) == pytest.approx(rate, rel=1e-6)
        assert problem.x == pytest.approx(x, rel=1e-6, abs=1e-9)
        assert problem.optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-6)


def test_l4_rate():
    assert l4_rate(2.0, 1.0, 0.5, eps=0.0) == pytest.approx(0.15 * 1.1 / 0.5)
    assert l4_rate(2.0, 1.0, -0.5) < 0


def test_rates_that_are_tensors_are_set_in_place():
    x = torch.tensor([1.0], requires_grad=True)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam([x], lr=rate, capturable=False)
    x.grad = torch.ones(1)
    SPS(optimizer, initial_rate=0.01).step(1.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.01 * 2 ** (1 / 500))


def test_sparse_and_missing_gradients_count():
    table = torch.nn.Embedding(5, 2, sparse=True)
    unused = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([table.weight, unused], lr=1.0)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert SPS(optimizer, initial_rate=1e9).step(5.0) == pytest.approx(5.0 / (0.5 * (2 * 4 + 2)))
