"""Outcomes that come without end: no policy is driven to a bound, and each says what it sees."""

from __future__ import annotations

import itertools
import json

import pytest

from stepsize.estimate import Outcome
from stepsize.policies.choice import Policy, PolicyName, StepSizeConfig, make_policy
from tests.estimates import SILENT, estimate

GUESS, STEPS = 1e-3, 2000
REPEATED = (*SILENT, Outcome.ASCENT)


def policy_named(name: PolicyName) -> Policy:
    config = StepSizeConfig(policy=name, interval=20, count=20, start=0)
    return make_policy(config, initial_rate=GUESS, total_steps=None)


def stream(policy: Policy, outcomes, first: int = 0, steps: int = STEPS) -> tuple[list[float], list[str]]:
    """The rate of every step and what the policy says, each step that it wants coming to the next of `outcomes`."""
    rates, said = [], []
    for step in range(first, first + steps):
        rates.append(policy.learning_rate(step, GUESS))
        if policy.wants(step):
            outcome = next(outcomes)
            absolute = -5 * rates[-1] if outcome is Outcome.ASCENT else GUESS
            text = policy.observe(estimate(step, absolute, error=0.1 * abs(absolute), rate=rates[-1], outcome=outcome))
            said += [text] if text else []
    return rates, said


def found(policy: Policy) -> float:
    """Feeds clear estimates of the guess until the policy follows it; the rate it then has."""
    for step in range(60):
        rate = policy.learning_rate(step, GUESS)
        policy.observe(estimate(step, GUESS, error=0.05 * GUESS, rate=rate))
    return policy.learning_rate(60, GUESS)


@pytest.mark.parametrize("outcome", REPEATED)
@pytest.mark.parametrize("name", ["observe", "median_hold", "ema", "auto_single"])
def test_an_endless_outcome_from_the_start_ends_at_the_guess_and_never_above(name, outcome):
    rates, said = stream(policy_named(name), itertools.repeat(outcome))
    assert max(rates) <= GUESS
    assert rates[-1] == pytest.approx(GUESS)
    assert len(set(rates[200:])) == 1
    assert any(outcome.value in text or "negative" in text for text in said)


@pytest.mark.parametrize("outcome", REPEATED)
@pytest.mark.parametrize("name", ["median_hold", "ema", "auto_single"])
def test_an_endless_outcome_later_on_moves_the_rate_within_a_factor_of_ten(name, outcome):
    policy = policy_named(name)
    before = found(policy)
    assert before == pytest.approx(GUESS, rel=0.1)
    rates, said = stream(policy, itertools.repeat(outcome), first=60)
    assert min(rates) > before / 10
    assert max(rates) <= before
    assert len(set(rates[100:])) == 1
    assert any(outcome.value in text or "negative" in text for text in said)


@pytest.mark.parametrize(
    "pattern",
    [
        (Outcome.NONFINITE, Outcome.FLAT),
        (Outcome.ASCENT, Outcome.FLAT),
        (Outcome.ASCENT, Outcome.NONFINITE, Outcome.DROPPED),
        (*(Outcome.NONFINITE,) * 3, Outcome.OK),
    ],
    ids=lambda pattern: "-".join(outcome.value for outcome in pattern),
)
@pytest.mark.parametrize("name", ["ema", "auto_single"])
def test_patterns_without_end_are_bounded_too(name, pattern):
    policy = policy_named(name)
    before = found(policy)
    rates, _ = stream(policy, itertools.cycle(pattern), first=60)
    assert min(rates) > before / 100
    assert max(rates) < 10 * before


def test_a_row_is_said_at_its_tenth_its_hundredth_and_so_on():
    _, said = stream(policy_named("observe"), itertools.repeat(Outcome.FLAT))
    assert [text.split(" estimates")[0] for text in said] == [
        f"step {number}: rate stays 1.00e-3 ({number}" for number in (10, 100, 1000)
    ]
    assert "rounding" in said[0]


def test_a_number_ends_a_row():
    outcomes = itertools.cycle([Outcome.DROPPED] * 9 + [Outcome.OK])
    assert stream(policy_named("observe"), outcomes)[1] == []


@pytest.mark.parametrize("name", ["observe", "ema", "auto_single"])
def test_the_state_of_a_run_from_before_rows_were_counted_is_taken(name):
    policy, fresh = policy_named(name), policy_named(name)
    found(policy)
    state = json.loads(json.dumps(policy.state_dict()))
    for key in ("repeats", "few_rows", "halved"):
        state.pop(key, None)
    fresh.load_state_dict(state)
    assert fresh.learning_rate(70, GUESS) == policy.learning_rate(70, GUESS)
