"""Policies whose estimates come a fixed number of steps after their own step."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest

from stepsize.estimate import Estimate, Outcome
from stepsize.policies.auto_single import AutoSingle
from stepsize.policies.choice import Policy, PolicyName, StepSizeConfig, make_policy
from stepsize.policies.median_hold import MedianHold
from tests.estimates import auto, estimate, following

Answer = Callable[[int, float], Estimate | None]
"""A step and its rate to its estimate; None for a step that cannot be measured, as where there is no fresh B1."""


class Delayed:
    """Drives a policy as a loop does, with every estimate handed over `delay` steps late."""

    def __init__(self, policy: Policy, delay: int, answer: Answer, *, scheduled: float = 1e-3) -> None:
        self.policy, self.delay, self.answer, self.scheduled = policy, delay, answer, scheduled
        self.under_way: list[Estimate] = []
        self.rates: list[float] = []
        self.measured: list[int] = []
        self.said: list[str] = []

    def run(self, steps: int) -> Delayed:
        for step in range(len(self.rates), steps):
            self.rates.append(self.policy.learning_rate(step, self.scheduled))
            if self.policy.wants(step) and (found := self.answer(step, self.rates[-1])) is not None:
                self.measured.append(step)
                self.under_way.append(found)
            due = [one for one in self.under_way if one.step + self.delay <= step]
            self.under_way = self.under_way[len(due) :]
            said = [self.policy.observe(replace(one, age=step - one.step)) for one in due]
            self.said += [text for text in said if text]
        return self


def by_series(interval: int) -> Answer:
    """Estimates whose suggested rate tells the series they belong to: 1e-4 times its number, from 1."""
    return lambda step, rate: estimate(step, 1e-4 * (1 + step // interval), rate=rate)


def held(interval: int, count: int, delay: int) -> MedianHold:
    return MedianHold(interval=interval, count=count, start=0, delay=delay)


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_median_hold_measures_25_of_25_and_sets_each_rate_at_its_series_end(delay):
    run = Delayed(held(100, 25, delay), delay, by_series(100)).run(400)
    assert run.measured == [100 * series + place for series in range(4) for place in range(25)]
    decided = [100 * series + 25 + delay for series in range(4)]
    changes = [step for step in range(1, 400) if run.rates[step] != run.rates[step - 1]]
    assert changes == decided
    assert [run.rates[step] for step in decided] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])
    assert [text.split(":")[0] for text in run.said] == [f"step {step}" for step in decided]


@pytest.mark.parametrize(("interval", "count"), [(100, 25), (30, 25), (25, 25), (10, 10), (10, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("delay", [1, 3, 9, 10, 11, 24, 25, 26, 99, 100, 101, 230])
def test_median_hold_sets_the_rate_of_each_series_by_its_own_estimates_however_long_the_delay(interval, count, delay):
    series = 5
    run = Delayed(held(interval, count, delay), delay, by_series(interval)).run(series * interval + delay)
    assert run.measured[: series * count] == [
        interval * number + place for number in range(series) for place in range(count)
    ]
    rates = [*run.rates, run.policy.learning_rate(10**6, 1.0)]
    assert list(dict.fromkeys(rates))[1:] == pytest.approx([1e-4 * number for number in range(1, series + 1)])


@pytest.mark.parametrize("delay", [0, 1, 4, 10, 40])
def test_median_hold_asks_again_for_what_does_not_count_and_for_no_more(delay):
    """The second estimate is flat; the fifth step can't be measured. Both are made up for."""

    def answer(step: int, rate: float) -> Estimate | None:
        if step == 4:
            return None
        return estimate(step, 2e-4, rate=rate, outcome=Outcome.FLAT if step == 1 else None)

    run = Delayed(held(100, 6, delay), delay, answer).run(99)
    assert len(run.measured) == 7
    assert run.policy.learning_rate(99, 1.0) == pytest.approx(2e-4)
    assert run.measured[:5] == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("delay", [0, 1, 4, 10, 40])
def test_median_hold_gives_a_series_up_when_nothing_more_of_it_can_come(delay):
    def answer(step: int, rate: float) -> Estimate:
        return estimate(step, 2e-4, rate=rate, outcome=Outcome.FLAT if step < 100 else None)

    run = Delayed(held(100, 3, delay), delay, answer).run(100 + 3 + delay + 1)
    first = [step for step in run.measured if step < 100]
    assert 6 <= len(first) <= 6 + delay
    assert run.said[0] == (
        f"step {first[-1] + delay + 1}: rate stays 1.00e-3 (0 of 3 estimates gave a number; {len(first)} flat)"
    )
    assert run.rates[-1] == pytest.approx(2e-4), "the next series is not the worse for it"


def test_median_hold_asks_for_a_series_whatever_the_one_before_has_counted():
    """Three of four counted, and nothing more of either series could be measured so far."""
    policy = held(12, 4, 1)
    Delayed(policy, 1, lambda step, rate: estimate(step, 2e-4, rate=rate) if step < 3 else None).run(16)
    assert all(policy.wants(12 + place) for place in range(9))


def test_median_hold_goes_on_from_a_state_that_knew_no_delay():
    policy = held(10, 3, 0)
    state = {"rate": 1e-3, "series": 0, "rates": [2e-4, 2e-4], "failures": {}, "decided": False}
    policy.load_state_dict(state)
    assert policy.wants(2)
    assert "2.00e-4" in (policy.observe(estimate(2, 2e-4)) or "")


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_comes_to_each_trial_length_by_evidence_of_that_length(delay):
    """Ten estimates without evidence each; of those under way at a change none counts for the next length."""
    policy = auto(3e-5)
    run = Delayed(policy, delay, lambda step, rate: estimate(step, -1e-3 * (-1) ** step, error=1e-2, rate=rate))
    run.run(2 * (10 + delay) + 5)
    lengths = [1e-6] * (10 + delay) + [1e-5] * (10 + delay) + [3e-5] * 5
    assert run.rates == pytest.approx(lengths)


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_goes_one_length_up_for_a_flat_step_of_the_present_length(delay):
    run = Delayed(auto(2e-5), delay, lambda step, rate: estimate(step, outcome=Outcome.FLAT, rate=rate))
    run.run(3 * (1 + delay))
    assert run.rates == pytest.approx([1e-6] * (1 + delay) + [1e-5] * (1 + delay) + [2e-5] * (1 + delay))


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_tries_a_whole_block_of_few_rows_at_each_length(delay):
    def answer(step: int, rate: float) -> Estimate:
        return replace(estimate(step, -1e-3 * (-1) ** step, error=1e-2, rate=rate), rows=4)

    run = Delayed(auto(3e-5), delay, answer).run(2 * (8 + delay) + 5)
    assert run.rates == pytest.approx([1e-6] * (8 + delay) + [1e-5] * (8 + delay) + [3e-5] * 5)


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_halves_once_for_what_one_rate_did(delay):
    """Steps at 1e-2 give no finite number, those at half of it do."""
    policy = following(1e-2)
    outcomes = {True: Outcome.NONFINITE, False: None}

    def answer(step: int, rate: float) -> Estimate:
        return estimate(step, 1e-2, error=1e-1, rate=rate, outcome=outcomes[rate > 0.9e-2])

    run = Delayed(policy, delay, answer)
    run.rates = [1e-6]  # the step that found the rate
    run.run(1 + (1 + delay) + (1 + delay))
    assert run.rates[1:] == pytest.approx([1e-2] * (1 + delay) + [5e-3] * (1 + delay), rel=1e-6)
    assert sum("halved" in text for text in run.said) == 1


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_takes_halvings_back_one_by_one_as_steps_at_each_give_numbers(delay):
    policy = following(1e-2)
    last_bad = 4 * (1 + delay)

    def answer(step: int, rate: float) -> Estimate:
        return estimate(step, 1e-2, error=10.0, rate=rate, outcome=Outcome.NONFINITE if step <= last_bad else None)

    run = Delayed(policy, delay, answer)
    run.rates = [1e-6]
    run.run(1 + 9 * (1 + delay))
    ladder = list(dict.fromkeys(float(f"{rate:.3g}") for rate in run.rates[1:]))
    assert ladder == [1e-2, 5e-3, 2.5e-3, 1.25e-3], "down three times; the way back has the same rates"
    assert run.rates[-1] == pytest.approx(1e-2, rel=1e-3)
    widths = [sum(rate == pytest.approx(each, rel=1e-3) for rate in run.rates[1:]) for each in ladder]
    assert widths[1] == widths[2] == 2 * (1 + delay), "one decision in 1 + delay steps, down and up"


@pytest.mark.parametrize("delay", [0, 1, 4, 10])
def test_auto_does_not_halve_its_rate_for_a_trial_step(delay):
    """A trial step whose numbers are not finite is under way as the search ends."""
    policy = auto()
    found = estimate(0, 1e-2, error=1e-3, rate=1e-6, age=delay)
    assert policy.observe(found) is not None
    before = policy.learning_rate(50, 1.0)
    for step in range(1, delay + 1):
        policy.observe(estimate(step, outcome=Outcome.NONFINITE, rate=1e-6, age=delay))
    assert policy.learning_rate(50, 1.0) == before
    policy.observe(estimate(delay + 1, outcome=Outcome.NONFINITE, rate=before, age=delay))
    assert policy.learning_rate(50, 1.0) == pytest.approx(before / 2)


@pytest.mark.parametrize("delay", [1, 4, 10])
@pytest.mark.parametrize("name", ["ema", "auto_single"])
def test_a_delay_does_not_change_where_a_rate_settles(name, delay):
    """Estimates say nothing of the rate they were made at, so following them late overshoots nothing."""
    draw = random.Random(3)
    alphas = [draw.gauss(4e-3, 2e-3) for _ in range(400)]

    def answer(step: int, rate: float) -> Estimate:
        return estimate(step, alphas[step], error=2e-3, rate=rate)

    config = StepSizeConfig(policy=name, interval=1, count=1, start=0, warmup=0, delay=delay)
    ends = [
        Delayed(make_policy(config, initial_rate=1e-3, total_steps=None), late, answer).run(300 + late).rates
        for late in (0, delay)
    ]
    same = [rate for rate in ends[1] if rate not in ends[0]]
    assert ends[1][-1] == ends[0][-1], "the same estimates have led to the same rate"
    assert all(rate < 1.5 * max(ends[0]) for rate in same)


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_a_policy_restored_with_estimates_under_way_continues_exactly_wherever_it_was_cut(name):
    draw = random.Random(5)
    outcomes = [draw.choice([None] * 5 + [Outcome.FLAT, Outcome.NONFINITE]) for _ in range(120)]
    alphas = [draw.gauss(2e-3, 3e-3) for _ in range(120)]

    def answer(step: int, rate: float) -> Estimate:
        return estimate(step, alphas[step], error=2e-3, rate=rate, outcome=outcomes[step])

    def made() -> Delayed:
        config = StepSizeConfig(policy=name, interval=20, count=6, start=2, delay=4)
        return Delayed(make_policy(config, initial_rate=1e-3, total_steps=200), 4, answer)

    whole = made().run(120)
    for cut in range(1, 90):
        first, second = made().run(cut), made()
        second.policy.load_state_dict(json.loads(json.dumps(first.policy.state_dict())))
        second.rates, second.measured, second.said = first.rates, first.measured, first.said
        second.under_way = first.under_way
        second.run(120)
        assert (second.rates, second.measured, second.said) == (whole.rates, whole.measured, whole.said), cut
        assert second.policy.state_dict() == whole.policy.state_dict(), cut


def test_a_delay_is_a_number_of_steps():
    with pytest.raises(ValueError, match=r"stepsize\.delay: -1 is negative"):
        StepSizeConfig(delay=-1)
    policy = make_policy(StepSizeConfig(policy="median_hold", delay=4), initial_rate=1e-3, total_steps=None)
    assert isinstance(policy, MedianHold)
    assert policy.delay == 4
    assert isinstance(
        make_policy(StepSizeConfig(policy="auto_single", delay=4), initial_rate=1.0, total_steps=9), AutoSingle
    )
