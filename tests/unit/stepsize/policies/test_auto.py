"""`auto`: what it finds, what each outcome does to it, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stepsize.estimate import Estimate, Outcome
from stepsize.policies import NO_HORIZON, StepSizeConfig, make_policy
from stepsize.policies.auto import Auto
from tests.estimates import estimate

NO_WARMUP: dict[str, Any] = {"warmup": 0}


class Fed:
    """An `auto` that is told of α_1 and α_K as made up here; without noise unless told so."""

    def __init__(self, policy: Auto | None = None, *, rate: float = 1e-2, delay: int = 0) -> None:
        self.policy = policy or Auto(guess=1e-3, warmup=0)
        self.rate, self.delay = rate, delay
        self.rates: list[float] = []
        self.said: list[str] = []
        self.plans: list[Any] = []
        self._due: list[tuple[int, Estimate]] = []

    def advance(self, steps: range, *, alpha: float | None = None, error: float = 0.05, **options: Any) -> Fed:
        """`alpha` is what every horizon is measured as; single steps suggest the rate."""
        for step in steps:
            rate = self.policy.learning_rate(step, 0.5)
            self.rates.append(rate)
            if self.policy.wants(step):
                self._due.append((step + self.delay, estimate(step, self.rate, error=1e-3 * self.rate, rate=rate)))
            plan = self.policy.horizon(step + 1)
            self.plans.append(plan)
            if plan.since is not None and alpha is not None:
                found = estimate(step, alpha, error=error, rate=1.0, **options)
                self._due.append((step + self.delay, replace(found, horizon=step + 1 - plan.since)))
            while self._due and self._due[0][0] <= step:
                said = self.policy.observe(replace(self._due.pop(0)[1], age=self.delay))
                self.said += [said] if said else []
        return self


def test_it_leaves_the_schedule_its_steps_before_start() -> None:
    policy = Auto(guess=1e-3, start=4)
    assert [policy.learning_rate(step, 0.3) for step in range(4)] == [0.3] * 4
    assert not any(policy.wants(step) for step in range(4))
    assert [policy.horizon(done) for done in range(1, 5)] == [NO_HORIZON] * 4
    assert policy.observe(estimate(3, 1e-2)) is None
    assert policy.learning_rate(4, 0.3) == 1e-6


@pytest.mark.parametrize("guess", [1e-7, 1e-6, 1e-2, 1.0])
def test_it_begins_at_a_share_of_the_rate_that_the_trial_steps_find(guess: float) -> None:
    fed = Fed(Auto(guess=guess, warmup=0)).advance(range(2))
    assert fed.rates == [min(guess, 1e-6), pytest.approx(3e-3)]
    assert "3.00e-3" in fed.said[0]
    assert "0.3 of the 1.00e-2" in fed.said[0]


def test_on_target_the_rate_stays() -> None:
    fed = Fed().advance(range(400), alpha=0.58)
    assert fed.rates[399] == pytest.approx(fed.rates[60], rel=0.15)


@pytest.mark.parametrize(("alpha", "grows"), [(1.2, True), (0.1, False), (-0.5, False)])
def test_above_its_target_the_rate_rises_and_below_it_falls(alpha: float, grows: bool) -> None:
    fed = Fed().advance(range(400), alpha=alpha)
    assert (fed.rates[399] > 2 * fed.rates[60]) if grows else (fed.rates[399] < 0.5 * fed.rates[60])
    factors = [after / before for before, after in zip(fed.rates[40:], fed.rates[41:], strict=False)]
    assert max(factors) <= 1.5 + 1e-9
    assert min(factors) >= 0.5 - 1e-9


def test_what_is_noise_moves_the_rate_little() -> None:
    certain, noise = (Fed().advance(range(400), alpha=1.2, error=error) for error in (0.05, 5.0))
    assert noise.rates[399] < 0.5 * certain.rates[399]


def test_noisy_measurements_are_made_in_longer_series() -> None:
    counts = [
        sum(plan.since is not None for plan in Fed().advance(range(2000), alpha=0.6, error=error).plans)
        for error in (0.02, 0.3, 1.0)
    ]
    assert counts[0] < counts[1] < counts[2] < 8.1 * counts[0]


@pytest.mark.parametrize("outcome", [Outcome.FLAT, Outcome.STALE, Outcome.DROPPED])
def test_a_series_without_numbers_leaves_the_rate_alone(outcome: Outcome) -> None:
    fed = Fed().advance(range(60), alpha=0.6).advance(range(60, 200), alpha=0.6, outcome=outcome)
    assert len(set(fed.rates[70:])) == 1
    assert any(outcome.value in said for said in fed.said), "and that they come again and again is said"


def test_a_series_that_is_not_finite_halves_the_rate() -> None:
    fed = Fed().advance(range(60), alpha=0.58)
    fed.advance(range(60, 75), alpha=0.58, outcome=Outcome.NONFINITE)
    assert fed.rates[-1] < 0.3 * fed.rates[59]
    assert any("no finite number" in said for said in fed.said)


def test_a_measurement_that_never_came_holds_nothing_up() -> None:
    fed = Fed().advance(range(100), alpha=0.58)
    fed.advance(range(100, 140), alpha=None)
    before = fed.rates[-1]
    fed.advance(range(140, 400), alpha=1.5)
    assert fed.rates[-1] > 1.5 * before


def test_steps_that_raise_the_loss_again_and_again_are_said_once() -> None:
    fed = Fed().advance(range(200), alpha=0.58).advance(range(200, 600), alpha=-0.4)
    told = [said for said in fed.said if "raise the loss" in said]
    assert len(told) == 1
    assert "overfits" in told[0]
    assert not any("raise the loss" in said for said in Fed().advance(range(600), alpha=-0.1, error=0.2).said)


def test_it_cools_down_measures_nothing_then_and_lets_go_of_its_snapshots() -> None:
    fed = Fed(Auto(guess=1e-3, warmup=0, cooldown=(340, 400))).advance(range(400), alpha=0.58)
    assert fed.rates[370] == pytest.approx(fed.rates[339] / 2, rel=0.05)
    assert all(plan.since is None and not plan.keep for plan in fed.plans[340:])
    kept: set[int] = set()
    for done, plan in enumerate(fed.plans, start=1):
        assert set(plan.forget) <= kept
        kept = kept - set(plan.forget) | ({done} if plan.keep else set())
    assert not kept


@pytest.mark.parametrize("delay", [0, 4])
def test_it_goes_on_from_its_state_at_any_step(delay: int) -> None:
    whole = Fed(delay=delay).advance(range(300), alpha=0.8, error=0.4)
    for cut in (1, 5, 20, 34, 41, 60, 61, 62, 150, 222):
        fed = Fed(delay=delay).advance(range(cut), alpha=0.8, error=0.4)
        state = json.loads(json.dumps(fed.policy.state_dict()))
        fed.policy = Auto(guess=1e-3, warmup=0)
        fed.policy.load_state_dict(state)
        fed.advance(range(cut, 300), alpha=0.8, error=0.4)
        assert (fed.rates, fed.plans, fed.said) == (whole.rates, whole.plans, whole.said)


def test_it_goes_on_from_the_rate_of_a_run_that_followed_single_steps() -> None:
    single = make_policy(StepSizeConfig(policy="auto_single", warmup=0), initial_rate=1e-3, total_steps=None)
    for step in range(50):
        single.observe(estimate(step, 1e-2, error=1e-3, rate=single.learning_rate(step, 0.3)))
    policy = Auto(guess=1e-3, warmup=0)
    policy.load_state_dict(json.loads(json.dumps(single.state_dict())))
    assert policy.learning_rate(50, 0.3) == single.learning_rate(50, 0.3)
    fed = Fed(policy).advance(range(50, 400), alpha=1.2)
    assert fed.rates[-1] > 2 * fed.rates[0], "and measures many steps from there on"


def test_without_a_budget_the_horizon_is_bounded() -> None:
    policy = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=None)
    bounded = make_policy(StepSizeConfig(policy="auto"), initial_rate=1e-3, total_steps=10**6)
    assert (policy._windows.endless, bounded._windows.endless) == (True, False)  # pyright: ignore[reportAttributeAccessIssue]
