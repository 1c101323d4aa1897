"""The configuration's checks, and what each policy measures and makes of every outcome."""

from __future__ import annotations

import doctest
import json
import random
import statistics

import pytest

import stepsize.policies.choice
from stepsize.estimate import Estimate, Outcome
from stepsize.options import MeasuringOptions
from stepsize.policies.choice import Policy, StepSizeConfig, make_policy
from stepsize.policies.rates import format_rate


def estimate(step: int, absolute: float, *, outcome: Outcome | None = None, rate: float = 1e-3, age: int = 0):
    """An estimate that suggests the rate `absolute`; an outcome without a number carries none."""
    outcome = outcome or (Outcome.OK if absolute > 0 else Outcome.ASCENT)
    number = outcome in (Outcome.OK, Outcome.ASCENT)
    curvature = 0.02
    return Estimate(
        step=step,
        age=age,
        outcome=outcome,
        learning_rate=rate,
        rows=256,
        slope=-curvature * absolute / rate if number else None,
        curvature=curvature if number else None,
        relative=absolute / rate if number else None,
        absolute=absolute if number else None,
        standard_error=0.3 if number else None,
    )


def run(policy: Policy, first: int, last: int, alphas, *, scheduled: float = 1e-3, log: list[str] | None = None):
    """Steps first..last−1 as a trainer takes them; returns the rate of each step and the steps measured."""
    rates, measured = [], []
    for step in range(first, last):
        rate = policy.learning_rate(step, scheduled)
        rates.append(rate)
        if policy.wants(step):
            measured.append(step)
            answer = alphas(step)
            if answer is not None:
                said = policy.observe(answer)
                if said and log is not None:
                    log.append(said)
    return rates, measured


def median_hold(interval: int, count: int, start: int) -> Policy:
    config = StepSizeConfig(policy="median_hold", interval=interval, count=count, start=start)
    return make_policy(config, initial_rate=1e-3, total_steps=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "median"}, "stepsize.policy: 'median'"),
        ({"interval": 0}, "stepsize.interval: 0"),
        (
            {"interval": 5, "count": 6},
            "stepsize.count: 6 estimates do not fit an interval of 5 steps; give stepsize.count from 1 to 5",
        ),
        ({"count": 0}, "stepsize.count: 0"),
        ({"start": -1}, "stepsize.start: -1"),
        ({"measuring": MeasuringOptions(estimators=("biased",))}, "lacks 'unbiased'"),
        ({"measuring": MeasuringOptions(curvature="hessian"), "policy": "auto"}, "policy 'auto' would act on it"),
    ],
)
def test_config_errors_name_key_and_value_in_one_line(values, message):
    with pytest.raises(ValueError, match="stepsize") as caught:
        StepSizeConfig(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
def test_initial_rate_must_be_positive_and_finite(rate):
    with pytest.raises(ValueError, match="learning rate"):
        make_policy(StepSizeConfig(), initial_rate=rate, total_steps=10)


def test_none_measures_nothing_and_follows_the_schedule():
    policy = make_policy(StepSizeConfig(policy="none"), initial_rate=1e-3, total_steps=10)
    rates, measured = run(policy, 0, 300, lambda step: estimate(step, 1.0), scheduled=0.25)
    assert set(rates) == {0.25}
    assert measured == []


def test_observe_measures_the_first_count_of_every_interval_and_follows_the_schedule():
    config = StepSizeConfig(policy="observe", interval=100, count=3, start=50)
    policy = make_policy(config, initial_rate=1e-3, total_steps=None)
    rates, measured = run(policy, 0, 300, lambda step: estimate(step, 1.0), scheduled=0.25)
    assert set(rates) == {0.25}
    assert measured == [50, 51, 52, 150, 151, 152, 250, 251, 252]


def test_median_hold_follows_the_schedule_then_holds_medians():
    alphas = {200: 5e-4, 201: 9e-4, 202: 7e-4, 300: 1e-4, 301: 2e-4, 302: -8e-4}
    policy = median_hold(interval=100, count=3, start=200)
    log: list[str] = []
    rates, measured = run(policy, 0, 400, lambda step: estimate(step, alphas[step]), log=log)
    assert measured == sorted(alphas)
    assert rates == [1e-3] * 203 + [7e-4] * 100 + [1e-4] * 97
    assert log == [
        "step 203: rate 1.00e-3 → 7.00e-4 (median of 3 estimates, 0 of them negative)",
        "step 303: rate 7.00e-4 → 1.00e-4 (median of 3 estimates, 1 of them negative)",
    ]


def test_median_hold_keeps_its_rate_where_the_median_overflows():
    log: list[str] = []
    policy = median_hold(interval=10, count=3, start=0)
    rates, _ = run(policy, 0, 20, lambda step: estimate(step, float("inf")), log=log)
    assert set(rates) == {1e-3}
    assert "rate stays 1.00e-3" in log[0]
    assert "is inf" in log[0]


def test_median_hold_takes_the_midpoint_of_an_even_count():
    alphas = iter([4e-4, 1e-4, 3e-4, -2e-4])
    policy = median_hold(interval=10, count=4, start=0)
    rates, _ = run(policy, 0, 6, lambda step: estimate(step, next(alphas)))
    assert rates[-1] == pytest.approx(2e-4)


def test_median_hold_keeps_the_rate_when_the_median_is_not_positive():
    alphas = iter([-4e-4, 5e-3, -3e-4])
    policy = median_hold(interval=10, count=3, start=0)
    log: list[str] = []
    rates, _ = run(policy, 0, 10, lambda step: estimate(step, next(alphas)), log=log)
    assert set(rates) == {1e-3}
    assert log == ["step 3: rate stays 1.00e-3 (the median of 3 estimates, 2 of them negative, is -3.00e-4)"]


def test_median_hold_agrees_with_the_protocol_written_out():
    draw = random.Random(7)
    alphas = [draw.gauss(2e-4, 4e-4) for _ in range(1000)]
    for interval, count in ((50, 1), (50, 4), (70, 25), (30, 30)):
        expected, rate = [], 1e-3
        for step in range(1000):
            expected.append(rate if step >= 100 else 1e-3)
            if step >= 100 and (step - 100) % interval == count - 1:
                median = statistics.median(alphas[step - count + 1 : step + 1])
                rate = median if median > 0 else rate
        rates, _ = run(median_hold(interval, count, 100), 0, 1000, lambda step: estimate(step, alphas[step]))
        assert rates == expected


@pytest.mark.parametrize("outcome", [Outcome.FLAT, Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED])
def test_median_hold_makes_up_for_outcomes_without_a_number(outcome):
    def answer(step: int) -> Estimate:
        return estimate(step, step * 1e-4, outcome=outcome if step in (0, 2) else None)

    policy = median_hold(interval=100, count=3, start=0)
    rates, measured = run(policy, 0, 100, answer)
    assert measured == [0, 1, 2, 3, 4]
    assert rates[4] == 1e-3
    assert rates[5] == pytest.approx(3e-4)


def test_median_hold_makes_up_for_a_wanted_step_that_was_never_measured():
    policy = median_hold(interval=100, count=3, start=0)
    rates, measured = run(policy, 0, 100, lambda step: None if step == 1 else estimate(step, 2e-4))
    assert measured == [0, 1, 2, 3]
    assert rates[4] == pytest.approx(2e-4)


@pytest.mark.parametrize("outcome", [Outcome.FLAT, Outcome.NONFINITE, Outcome.STALE, Outcome.DROPPED])
def test_median_hold_gives_a_series_up_and_starts_afresh(outcome):
    def answer(step: int) -> Estimate:
        return estimate(step, 2e-4, outcome=outcome if step < 100 and step != 1 else None)

    policy = median_hold(interval=100, count=3, start=0)
    log: list[str] = []
    rates, measured = run(policy, 0, 200, answer, log=log)
    assert measured == [0, 1, 2, 3, 4, 5, 100, 101, 102]
    assert rates[102] == 1e-3
    assert rates[103] == pytest.approx(2e-4)
    assert log[0] == f"step 6: rate stays 1.00e-3 (1 of 3 estimates gave a number; 5 {outcome.value})"


def test_median_hold_gives_up_at_the_next_interval_when_estimates_stay_out():
    policy = median_hold(interval=4, count=4, start=0)
    log: list[str] = []
    run(policy, 0, 8, lambda step: None if step == 3 else estimate(step, 2e-4), log=log)
    assert log[0] == "step 4: rate stays 1.00e-3 (3 of 4 estimates gave a number)"
    assert log[1].startswith("step 8: rate 1.00e-3 → 2.00e-4")


def test_median_hold_ignores_what_arrives_after_its_series():
    policy = median_hold(interval=10, count=2, start=0)
    run(policy, 0, 12, lambda step: estimate(step, 2e-4))
    before = policy.state_dict()
    assert policy.observe(estimate(5, 9.0, age=7)) is None
    assert policy.observe(estimate(11, 9.0)) is None
    assert policy.state_dict() == before


def test_median_hold_says_the_step_from_which_a_late_estimate_counts():
    policy = median_hold(interval=10, count=1, start=0)
    policy.learning_rate(0, 1e-3)
    assert (policy.observe(estimate(0, 2e-4, age=2)) or "").startswith("step 3:")


def test_median_hold_does_not_hold_a_rate_of_zero():
    policy = median_hold(interval=10, count=1, start=0)
    assert policy.learning_rate(0, 0.0) == 0.0
    assert policy.learning_rate(1, 1e-4) == 1e-4
    assert policy.learning_rate(2, 5e-4) == 1e-4


@pytest.mark.parametrize(("total", "start"), [(85_328, 2133), (None, 2000), (400, 10)])
def test_median_hold_starts_past_the_warm_up_by_default(total, start):
    policy = make_policy(StepSizeConfig(policy="median_hold"), initial_rate=1e-3, total_steps=total)
    assert not policy.wants(start - 1)
    assert policy.wants(start)


@pytest.mark.parametrize("name", ["none", "observe", "median_hold"])
@pytest.mark.parametrize("cut", [1, 53, 111, 154])
def test_a_restored_policy_continues_exactly(name, cut):
    draw = random.Random(3)
    outcomes = [draw.choice([None, None, None, Outcome.FLAT, Outcome.DROPPED]) for _ in range(300)]
    alphas = [draw.gauss(2e-4, 4e-4) for _ in range(300)]

    def answer(step: int) -> Estimate:
        return estimate(step, alphas[step], outcome=outcomes[step])

    config = StepSizeConfig(policy=name, interval=50, count=7, start=10)
    whole = make_policy(config, initial_rate=1e-3, total_steps=300)
    expected = run(whole, 0, cut, answer)
    first = make_policy(config, initial_rate=1e-3, total_steps=300)
    assert run(first, 0, cut, answer) == expected
    second = make_policy(config, initial_rate=1e-3, total_steps=300)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(second, cut, 300, answer) == run(whole, cut, 300, answer)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1.2e-4, "1.20e-4"), (1.0, "1.00e0"), (-3e-12, "-3.00e-12"), (None, "unset"), (float("inf"), "inf")],
)
def test_rates_are_written_as_people_write_them(rate, text):
    assert format_rate(rate) == text


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(stepsize.policies.choice)
    assert result.attempted > 10
    assert result.failed == 0
