"""The search for a first rate: where the loss has no curvature or that of a few rows, and where nothing tells one."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.auto import BEGINNING, Auto
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.cadence import Cadence
from stepsize.policies.evidence.trial_steps import HARMLESS
from tests.estimates import estimate
from tests.small_loops import losses_under_auto


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


@pytest.mark.parametrize(("loss", "begins"), [(50.0, 3e-3), (1.0, 3e-3), (6e-5, 3e-3), (3.4e-5, 2e-3), (-1.0, 3e-3)])
def test_training_begins_at_no_rate_that_takes_more_than_the_loss(loss: float, begins: float) -> None:
    """The quadratic whose slope is 0.02 and whose minimum lies at a rate of 0.01 takes 0.02 · 2e-3 · 0.85 = 3.4e-5."""
    policy = Auto(guess=1e-3, warmup=0)
    found = replace(estimate(0, 1e-2, error=1e-3, rate=1e-6), loss=loss)
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
    found = replace(estimate(0, 1e-2, error=1e-3, rate=1e-6), loss=0.02 * BEGINNING * 1e-2 * 0.85 * (1 - 1e-6))
    assert "α* has" not in (Auto(guess=1e-3).observe(found) or "α* has")


def searched(policy: Auto, steps: range, told: Callable[[Estimate], Estimate]) -> tuple[list[float], list[str]]:
    """The rates of these steps, and what was said of estimates of 1e-3 ± 1, as `told` has them."""
    rates, said = [], []
    for step in steps:
        rates.append(policy.learning_rate(step, 0.0))
        said.append(policy.observe(told(estimate(step, 1e-3, error=1.0, rate=rates[-1]))) or "")
    return rates, said


def costs(harmless: float) -> Callable[[Estimate], Estimate]:
    """A loss of which the curvature, 2 per rate squared, costs HARMLESS at the rate `harmless`."""
    return lambda found: replace(found, loss=harmless**2 / HARMLESS)


NOTHING = "which is no evidence of a rate"


@pytest.mark.parametrize("guess", [1e-6, 1e-2, 100.0])
def test_a_search_without_evidence_ends_at_a_rate_that_costs_little(guess: float) -> None:
    policy = Auto(guess=guess, warmup=0)
    _, said = searched(policy, range(30), costs(0.05))
    assert [NOTHING in one for one in said] == [False] * 29 + [True]
    assert policy.learning_rate(30, 0.0) == pytest.approx(0.05)
    assert "5.00e-2" in said[-1]


def test_no_trial_step_is_longer_than_one_that_costs_little() -> None:
    rates, _ = searched(Auto(guess=100.0), range(30), costs(5e-6))
    assert rates[0] == 1e-6
    assert max(rates) == pytest.approx(5e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_nor_does_it_end_at_a_rate_whose_slope_would_take_the_loss(sign: int) -> None:
    """However little curvature there is, and whichever way the slope goes."""
    policy = Auto(guess=1e-6, warmup=0)
    for step in range(30):
        found = estimate(step, sign * 1e3, error=1e4, rate=1e-6, curvature=1e-3)
        said = policy.observe(replace(found, loss=0.05)) or ""
    assert NOTHING in said
    assert policy.learning_rate(30, 0.0) == pytest.approx(0.05 / (1e3 * 1e-3) / 0.85)


def test_flat_and_lost_measurements_neither_hold_it_up_nor_count() -> None:
    policy = Auto(guess=1e-6, warmup=0)
    said = []
    for step in range(90):
        outcome = (None, Outcome.FLAT, Outcome.DROPPED)[step % 3]
        found = estimate(step, 1e-3, error=1.0, rate=policy.learning_rate(step, 0.0), outcome=outcome)
        said.append(policy.observe(costs(0.05)(found) if outcome is None else found) or "")
    assert [NOTHING in one for one in said] == [False] * 87 + [True] + [False] * 2


def test_a_search_of_few_rows_ends_after_three_blocks() -> None:
    policy = Auto(guess=1e-3, warmup=0)
    ended = None
    for step in range(60):
        noisy = estimate(step, 1e-2 * (-1.0) ** (step // 2), rate=policy.learning_rate(step, 0.0))
        if NOTHING in (policy.observe(costs(0.05)(replace(noisy, rows=4))) or ""):
            ended = step
    assert ended == 23


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_search_without_a_loss_above_zero_goes_on(loss: float) -> None:
    _, said = searched(Auto(guess=1e-3), range(90), lambda found: replace(found, loss=loss))
    assert not any(NOTHING in one for one in said)


def test_steps_that_clearly_climb_are_no_plateau() -> None:
    policy = Auto(guess=1e-3)
    for step in range(90):
        found = replace(estimate(step, -1.0, error=0.1, rate=policy.learning_rate(step, 0.0)), loss=1.0)
        assert NOTHING not in (policy.observe(found) or "")


def test_auto_single_never_gives_up() -> None:
    policy = AutoSingle(guess=1e-3, cadence=Cadence(interval=10, count=10, start=0))
    said = [policy.observe(costs(0.05)(estimate(step, 1e-3, error=1.0, rate=1e-6))) for step in range(90)]
    assert not any(NOTHING in (one or "") for one in said)


def test_the_state_knows_how_long_it_has_searched() -> None:
    policies = [Auto(guess=1e-3, warmup=0) for _ in range(2)]
    searched(policies[0], range(25), costs(0.05))
    policies[1].load_state_dict(json.loads(json.dumps(policies[0].state_dict())))
    again, once = (searched(policy, range(25, 40), costs(0.05)) for policy in (policies[1], policies[0]))
    assert again == once
    assert NOTHING in once[1][4]


def test_a_search_begun_by_an_earlier_version_goes_on() -> None:
    """Its totals had no curvature, and are begun anew."""
    policy, restored = Auto(guess=1e-3, warmup=0), Auto(guess=1e-3, warmup=0)
    searched(policy, range(25), costs(0.05))
    state = json.loads(json.dumps(policy.state_dict()))
    del state["trials"]["told"], state["unseen"], state["from_first_step"]
    state["trials"]["totals"] = [-1.0, 30.0]
    restored.load_state_dict(state)
    _, said = searched(restored, range(25, 55), costs(0.05))
    assert NOTHING in said[-1]
    assert restored.learning_rate(55, 0.0) == pytest.approx(0.05)


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
    losses, _ = losses_under_auto(model, optimizer, loss, batch, steps=600)
    assert losses[0] > 20
    assert statistics.fmean(losses[-30:]) < 0.9 * math.log(3)
