"""Where policies that follow estimates end up on problems whose best rate is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from stepsize import StepSizeWorker, set_learning_rate
from stepsize.estimate import Estimate
from stepsize.policies.choice import Policy, StepSizeConfig, make_policy
from stepsize.policies.observe import NoMeasurements
from tests.estimates import estimate
from tests.small_loops import losses_under_auto


class Tracking:
    """A quadratic whose optimum walks, so that the best constant rate of SGD is known.

    Loss ½‖θ − w_t‖² (curvature 1), N weights; each step w moves by q·ε and the gradient comes with noise σ·ε. With
    P the mean square of a coordinate of θ − w, P ← (1 − η)²P + η²σ² + q², least at η = P/(P + σ²): in balance
    P² = q²(P + σ²). That η is also the mean of the rates that α* suggests; the slope's variance is σ²‖d‖².
    """

    N, NOISE, WALK = 30, 1.0, 0.1

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.error = self.draw.standard_normal(self.N) * 3.0

    @classmethod
    def best_rate(cls) -> float:
        square = cls.WALK**2
        p = (square + math.sqrt(square**2 + 4 * square * cls.NOISE**2)) / 2
        return p / (p + cls.NOISE**2)

    def step(self, index: int, rate: float) -> tuple[float, Estimate]:
        """One SGD step at `rate`: the loss before it and its unbiased estimate."""
        g1, g2 = (self.error + self.NOISE * self.draw.standard_normal(self.N) for _ in range(2))
        d = -rate * g2
        slope, curvature = float(d @ g1), float(d @ d)
        loss = 0.5 * float(self.error @ self.error)
        self.error = self.error + d + self.WALK * self.draw.standard_normal(self.N)
        absolute, error = -slope / curvature * rate, self.NOISE * rate / math.sqrt(curvature)
        return loss, estimate(index, absolute, error=error, rate=rate, curvature=curvature / rate**2)


def track(policy: Policy, *, scheduled: float = 1.0, steps: int = 1500) -> tuple[float, float]:
    """(mean rate, mean loss) over the second half of a run."""
    problem, rates, losses = Tracking(seed=0), [], []
    for step in range(steps):
        rate = policy.learning_rate(step, scheduled)
        loss, found = problem.step(step, rate)
        if policy.wants(step):
            policy.observe(found)
        rates.append(rate)
        losses.append(loss)
    return float(np.mean(rates[steps // 2 :])), float(np.mean(losses[steps // 2 :]))


def loss_at(rate: float) -> float:
    """The mean loss at a constant rate."""
    return track(NoMeasurements(), scheduled=rate)[1]


@pytest.mark.parametrize("guess", [1e-6, 1e-4, 1e-2, 1.0])
def test_auto_lands_near_the_best_rate_from_every_guess(guess):
    best = Tracking.best_rate()
    least = loss_at(best)
    config = StepSizeConfig(policy="auto_single", interval=10, count=10)
    rate, loss = track(
        make_policy(config, initial_rate=guess, total_steps=None)
    )  # a moving target, nothing to settle on
    assert rate == pytest.approx(best, rel=0.2)
    assert loss < 1.05 * least
    assert min(loss_at(best / 4), loss_at(best * 4)) > 1.2 * least, "on this problem the rate matters"


@pytest.mark.parametrize("guess", [1e-4, 1e-2, 1.0])
def test_ema_lands_near_the_best_rate_too(guess):
    config = StepSizeConfig(policy="ema", interval=10, count=10)
    rate, _ = track(make_policy(config, initial_rate=guess, total_steps=1500), scheduled=guess)
    assert rate == pytest.approx(Tracking.best_rate(), rel=0.2)


def trained_from(guess: float, *, optimizer_rate: float) -> tuple[list[float], torch.Tensor]:
    """A loop of one's own under `auto`: the rate of each of 40 AdamW steps, and the weights they lead to."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)), nn.MSELoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=optimizer_rate)
    worker = StepSizeWorker(model, optimizer, loss)
    policy = make_policy(
        StepSizeConfig(policy="auto_single", interval=20, count=10), initial_rate=guess, total_steps=40
    )
    x, rates = torch.randn(41, 64, 5), []
    y = x.sum(2, keepdim=True).sin()
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.0))
        set_learning_rate(optimizer, rates[-1])
        optimizer.zero_grad()
        loss(model(x[step]), y[step]).backward()
        if policy.wants(step):
            worker.before_step(x[step + 1], y[step + 1], step=step)
        optimizer.step()
        worker.after_step()
        for found in worker.poll(step=step):
            policy.observe(found)
    return rates, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_auto_in_a_loop_of_one_s_own_does_the_same_to_the_bit_from_every_guess_above_its_trial_steps():
    """The guess only bounds steps taken without evidence, and the first step of 1e-6 already gives it here."""
    rates, weights = trained_from(1e-6, optimizer_rate=1e-6)
    assert rates[0] == 1e-6
    assert max(rates) > 1e-3
    for guess in (1e-4, 1e-2, 1.0):
        others, end = trained_from(guess, optimizer_rate=guess)
        assert others == rates
        assert torch.equal(end, weights)
    assert trained_from(1e-7, optimizer_rate=1e-7)[0][0] == 1e-7, "a smaller guess is a smaller step"


def test_auto_leaves_a_plateau() -> None:
    """Parity of three signs: nothing is gained until rates are far above what noise alone would allow."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(48, 10)
        return features, ((features[:, :3] > 0).sum(1) % 2).float()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, _ = losses_under_auto(model, optimizer, loss, batch, steps=600)
    assert sum(losses[50:100]) / 50 > 0.6, "as little as a guess knows"
    assert sum(losses[-50:]) / 50 < 0.4


@pytest.mark.parametrize("guess", [1e-6, 1e-2])
def test_auto_trains_where_no_single_step_tells_a_rate(guess: float) -> None:
    """An exclusive or by tanh and SGD: at first the gradients of two batches have nothing in common."""
    torch.manual_seed(2)
    model, loss = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(26, 6)
        return features, (features[:, 0] * features[:, 1] > 0).float()

    optimizer = torch.optim.SGD(model.parameters(), lr=guess)
    losses, said = losses_under_auto(model, optimizer, loss, batch, steps=800)
    assert any("which is no evidence of a rate" in one for one in said)
    assert sum(losses[-50:]) / 50 < 0.4


def test_auto_does_not_unlearn() -> None:
    """Trained weights, and rows of the same kind: there is nothing to gain, and a little to lose."""
    torch.manual_seed(2)
    teacher, mixing = torch.randn(20, 5), torch.randn(20, 20)
    model, loss = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)), nn.CrossEntropyLoss()

    def batch(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.randn(rows, 20)
        return features, torch.multinomial((torch.tanh(features @ mixing / 2) @ teacher * 0.6).softmax(1), 1)[:, 0]

    trainer = torch.optim.AdamW(model.parameters())
    for step in range(1500):
        trainer.param_groups[0]["lr"] = 3e-3 * (1 - step / 1500)
        features, classes = batch()
        trainer.zero_grad()
        loss(model(features), classes).backward()
        trainer.step()
    everything = batch(20_000)
    with torch.no_grad():
        before = loss(model(everything[0]), everything[1]).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    losses_under_auto(model, optimizer, loss, batch, steps=400)
    with torch.no_grad():
        assert loss(model(everything[0]), everything[1]).item() < 1.02 * before
