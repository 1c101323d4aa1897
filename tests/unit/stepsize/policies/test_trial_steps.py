"""The search for a first rate where logits lie far apart: a loss without curvature, and curvature of a few rows."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import nn

from stepsize import RateController
from stepsize.estimate import Estimate, Outcome
from stepsize.policies.auto import BEGINNING, Auto
from stepsize.policies.evidence.trial_steps import HARMLESS
from tests.estimates import estimate


def flat(step: int, rate: float, *, takes: float, loss: float = 50.0) -> Estimate:
    """An estimate without curvature of a step that takes the share `takes` of the loss, by its slope."""
    return replace(estimate(step, outcome=Outcome.FLAT, rate=rate), slope=-takes * loss, curvature=0.0, loss=loss)


def test_steps_get_longer_until_they_take_a_hundredth_of_the_loss() -> None:
    policy, rates = Auto(guess=1.0), []
    for step in range(100):
        rates.append(policy.learning_rate(step, 1.0))
        policy.observe(flat(step, rates[-1], takes=rates[-1] * 500))
    assert rates[:3] == pytest.approx([1e-6, 1e-5, 1e-4])
    assert set(rates[2:]) == {rates[2]}


def test_it_says_that_the_loss_is_straight_and_not_that_steps_are_short() -> None:
    policy = Auto(guess=1e-3)
    said = [policy.observe(flat(step, 1e-6, takes=0.5)) for step in range(10)]
    assert said[:9] == [None] * 9
    assert said[9] is not None
    assert "straight line" in said[9]
    assert "short" not in said[9]


@pytest.mark.parametrize(
    "found", [replace(flat(0, 1e-6, takes=0.5), loss=None), flat(0, 1e-6, takes=-0.5), flat(0, 1e-6, takes=1e-5)]
)
def test_other_flat_steps_are_too_short(found: Estimate) -> None:
    assert "too short" in (Auto(guess=1e-3).observe(found) or "")


@pytest.mark.parametrize(("loss", "begins"), [(50.0, 3e-3), (1.0, 3e-3), (0.004, 3e-3), (0.002, 2e-3), (-1.0, 3e-3)])
def test_training_begins_at_no_rate_that_takes_more_than_the_loss(loss: float, begins: float) -> None:
    """The quadratic of rate 1e-2 and curvature 2 per rate squared takes 1e-4 = ½ · slope · rate at its minimum."""
    policy = Auto(guess=1e-3, warmup=0)
    found = replace(estimate(0, 1e-2, error=1e-3, rate=1e-6), loss=loss * 1e-2)
    said = policy.observe(found) or ""
    assert policy.learning_rate(1, 0.0) == pytest.approx(begins)
    assert ("α* has 1.00e-2, of which a step would take more than the loss" in said) == (begins < BEGINNING * 1e-2)


def test_its_state_has_what_bounds_the_rate() -> None:
    policies = [Auto(guess=1e-3, warmup=0) for _ in range(3)]
    without = replace(estimate(0, 1e-2, error=9e-3, rate=1e-6), loss=1e-5)
    for policy in policies[:2]:
        assert policy.observe(without) is None, "no evidence yet"
    policies[2].load_state_dict(json.loads(json.dumps(policies[1].state_dict())))
    clear = replace(estimate(1, 1e-2, error=1e-4, rate=1e-6), loss=0.5e-5)
    rates = []
    for policy in (policies[0], policies[2]):
        policy.observe(clear)
        rates.append(policy.learning_rate(2, 0.0))
    assert rates[0] == rates[1] < BEGINNING * 1e-2


def test_a_rate_that_hardly_a_row_speaks_for_is_said_to_be_one() -> None:
    found = replace(estimate(0, 1e-2, error=1e-3, rate=1e-6), loss=1e-7)
    assert "scale the inputs" in (Auto(guess=1e-3).observe(found) or "")


def test_a_bound_below_the_trial_step_is_not_taken_for_one_too_long() -> None:
    found = replace(estimate(0, 1e-5, error=1e-6, rate=1e-6), loss=1e-12)
    assert "too long" not in (Auto(guess=1e-3).observe(found) or "too long")


def test_one_step_that_fits_everything_is_no_news() -> None:
    """Its bound is the rate itself, but for rounding."""
    found = replace(estimate(0, 1e-2, error=1e-3, rate=1e-6), loss=BEGINNING * 1e-4 * (1 - 1e-6))
    assert "α* has" not in (Auto(guess=1e-3).observe(found) or "α* has")


@pytest.mark.parametrize("guess", [1e-6, 1e-2, 100.0])
def test_a_search_without_evidence_ends_at_a_rate_that_costs_little(guess: float) -> None:
    """α* is 1e-3 ± 1 at any length, and the curvature of a step of 0.1 costs a thousandth of the loss."""
    policy, rates, said = Auto(guess=guess, warmup=0), [], []
    for step in range(40):
        rates.append(policy.learning_rate(step, 0.0))
        found = estimate(step, 1e-3, error=1.0, rate=rates[-1])
        assert found.curvature is not None
        loss = 0.1**2 * found.curvature / rates[-1] ** 2 / 2 / HARMLESS
        said.append(policy.observe(replace(found, loss=loss)))
        if policy.horizon(step + 1) and "tell no rate" in (said[-1] or ""):
            break
    assert len(rates) == 30
    assert max(rates) <= min(guess, 0.1) * (1 + 1e-9)
    assert policy.learning_rate(30, 0.0) == pytest.approx(BEGINNING * 0.1)


def test_a_search_without_a_loss_goes_on() -> None:
    policy = Auto(guess=1e-3)
    said = [policy.observe(replace(estimate(step, 1e-3, error=1.0, rate=1e-6), loss=0.0)) for step in range(60)]
    assert not any("tell no rate" in (one or "") for one in said)


def test_the_state_knows_how_long_it_has_searched() -> None:
    policies = [Auto(guess=1e-3, warmup=0) for _ in range(2)]

    def search(policy: Auto, steps: range) -> list[float]:
        rates = []
        for step in steps:
            policy.observe(replace(estimate(step, 1e-3, error=1.0, rate=policy.learning_rate(step, 0.0)), loss=1.0))
            rates.append(policy.learning_rate(step + 1, 0.0))
        return rates

    search(policies[0], range(25))
    policies[1].load_state_dict(json.loads(json.dumps(policies[0].state_dict())))
    assert search(policies[1], range(25, 40)) == search(policies[0], range(25, 40))
    assert policies[1].horizon(40) == policies[0].horizon(40)


def test_many_steps_are_not_said_to_be_straight() -> None:
    """Together they take a hundredth of the loss, as most do."""
    assert not replace(flat(100, 1e-3, takes=0.5), horizon=20).straight


def test_inputs_in_hundreds_are_trained_on() -> None:
    """Three classes of raw measurements of very different sizes, whose softmax is saturated as training begins."""
    torch.manual_seed(0)
    sizes = 10.0 ** torch.linspace(-1, 3, 12)
    centers = torch.randn(3, 12)
    model, loss = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)), nn.CrossEntropyLoss()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        classes = torch.randint(3, (32,))
        return (2 + centers[classes] + 0.5 * torch.randn(32, 12)) * sizes, classes

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    controller = RateController(model, optimizer, loss, total_steps=600)
    losses = []
    x1, y1 = batch()
    for step in range(600):
        (x2, y2), (x1, y1) = (x1, y1), batch()
        model.zero_grad()
        (now := loss(model(x2), y2)).backward()
        losses.append(now.item())
        with controller.around_step((x1,), y1, step=step):
            optimizer.step()
    assert losses[0] > 20
    assert statistics.fmean(losses[-30:]) < 0.9 * math.log(3)
