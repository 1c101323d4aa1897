"""The rate filter: its formulas, how long it pools, its clip, and that it stays right where its model holds."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from stepsize.policies.evidence import RateFilter
from stepsize.pooling import RateMoments
from tests.resume import assert_resumes


def one(rate: float, error: float, *, curvature: float = 3.0) -> RateMoments:
    """A step whose −slope/curvature is `rate`, known to `error`, all of it the slope's."""
    return RateMoments(-rate * curvature, curvature, (error * curvature) ** 2, 0.0, 0.0)


def started(rate: float, error: float, *, drift: float = 0.0, largest_factor: float = 1e9) -> RateFilter:
    followed = RateFilter(drift=drift, largest_factor=largest_factor)
    followed.start(rate, error, step=0)
    return followed


def test_starts_at_a_rate_and_its_error():
    followed = RateFilter(drift=0.1, largest_factor=2.0)
    assert not followed.started
    followed.start(2e-3, 5e-4, step=7)
    assert followed.started
    assert followed.rate == pytest.approx(2e-3)
    assert followed.relative_error == pytest.approx(0.25)


def test_agrees_with_the_formulas_written_out():
    draw = random.Random(0)
    followed = started(1e-3, 4e-4, drift=0.05)
    x, P, last = math.log(1e-3), 0.16, 0
    for step in (1, 2, 5, 6, 40, 41, 42):
        s, c = draw.gauss(-3e-3, 1e-3), draw.uniform(1.0, 4.0)
        var_s, var_c, cov = 1e-6, 0.04, 1e-5
        followed.add(RateMoments(s, c, var_s, var_c, cov), step=step)
        P, last = P + (step - last) * 0.05**2, step
        rate = math.exp(x)
        V = (var_s + rate**2 * var_c + 2 * rate * cov) / c**2
        x += P * rate / (P * rate**2 + V) * (-s / c - rate)
        P = P * V / (P * rate**2 + V)
        assert followed.rate == pytest.approx(math.exp(x), rel=1e-12)
        assert followed.relative_error == pytest.approx(math.sqrt(P), rel=1e-12)


def test_a_step_that_should_be_shorter_than_to_the_minimum_is_weighed_as_one_of_that_length():
    """An α of 2 is a rate of half as much, known half as well."""
    followed, halved = started(1e-3, 4e-4), started(1e-3, 4e-4)
    followed.add(RateMoments(-3e-3, 2.0, 1e-6, 0.04, 1e-5), step=1, target=2.0)
    halved.add(RateMoments(-1.5e-3, 2.0, 0.25e-6, 0.04, 0.5e-5), step=1)
    assert followed.rate == pytest.approx(halved.rate, rel=1e-12)
    assert followed.relative_error == pytest.approx(halved.relative_error, rel=1e-12)


def test_without_drift_equal_error_bars_are_averaged_alike():
    """Near its start the logarithm is linear, and an average of n estimates has 1/n of their variance."""
    followed = started(1.0, 0.01)
    offsets = [0.004, -0.002, 0.006]
    for step, offset in enumerate(offsets):
        followed.add(one(1.0 + offset, 0.01), step=step)
    assert followed.rate == pytest.approx(1.0 + sum(offsets) / 4, rel=1e-4)
    assert followed.relative_error == pytest.approx(0.01 / math.sqrt(4), rel=1e-2)


def test_a_precise_estimate_replaces_all_before_it():
    followed = started(1.0, 0.5)
    for step in range(6):
        followed.add(one(1.02, 1e-9), step=step)
    assert followed.rate == pytest.approx(1.02, rel=1e-3)


def test_a_vague_estimate_hardly_counts():
    followed = started(1.0, 0.1)
    followed.add(one(30.0, 100.0), step=1)
    assert followed.rate == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, 0.5), (-0.2, 0.25), (2.0, 1.6), (0.8, 1.0), (1.3, 1.0)])
def test_however_sure_it_was_many_steps_leave_it_within_two_standard_errors(ratio, expected):
    followed = started(1.0, 1e-4)
    followed.smallest_factor = 0.25
    followed.correct(ratio, noise=0.2**2, drifted=0.0)
    assert followed.rate == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("ratio", "expected"), [(1e300, 1.25), (-1e300, 0.8)])
def test_many_steps_move_it_no_further_either(ratio, expected):
    followed = started(1.0, 0.5, largest_factor=1.25)
    followed.correct(ratio, noise=0.2**2, drifted=0.0)
    assert followed.rate == pytest.approx(expected)


def test_what_is_known_no_better_counts_for_no_more():
    sure, widened = started(1.0, 0.01), started(1.0, 0.01)
    widened.widen(0.5)
    assert widened.relative_error == 0.5
    widened.widen(0.1)
    assert widened.relative_error == 0.5
    for followed in (sure, widened):
        followed.correct(1.2, noise=0.5**2, drifted=0.0)
    assert sure.rate == pytest.approx(1.0, rel=1e-3)
    assert widened.rate == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize(("rate", "expected"), [(1e6, 1.25), (-1e6, 0.8)])
def test_no_estimate_moves_it_further_than_the_largest_factor(rate, expected):
    followed = started(1.0, 0.5, largest_factor=1.25)
    followed.add(one(rate, 1e-3), step=1)
    assert followed.rate == pytest.approx(expected)


def test_a_negative_estimate_lowers_the_rate_and_leaves_it_positive():
    followed = started(1.0, 0.3)
    followed.add(one(-2.0, 0.3), step=1)
    assert 0 < followed.rate < 1.0


@pytest.mark.parametrize(("drift", "gap"), [(0.0, 1000), (0.1, 0)])
def test_uncertainty_grows_with_the_steps_since_the_last_estimate(drift, gap):
    still, later = (started(1.0, 0.1, drift=drift) for _ in range(2))
    still.add(one(1.5, 0.1), step=0)
    later.add(one(1.5, 0.1), step=gap)
    assert later.rate == still.rate, "no drift or no time: nothing grows"
    grown = started(1.0, 0.1, drift=0.1)
    grown.add(one(1.5, 0.1), step=100)
    assert grown.rate > still.rate + 0.1


def test_an_estimate_of_an_earlier_step_takes_no_drift_back():
    followed = started(1.0, 0.1, drift=0.1)
    followed.add(one(1.0, 0.1), step=50)
    before = followed.relative_error
    followed.add(one(1.0, 1e6), step=10)
    assert followed.relative_error == pytest.approx(before)
    followed.add(one(1.0, 1e6), step=50)
    assert followed.relative_error == pytest.approx(before), "nor is it counted twice"


def test_nothing_to_weigh_changes_nothing():
    followed = started(1.0, 0.0)
    followed.add(one(5.0, 0.0), step=1)
    assert followed.rate == 1.0


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_pools_about_as_many_as_the_error_bars_call_for(noise):
    """In balance P ≈ drift·√V/α, so a gain of 1 / (√V / (drift·α)) an estimate, where V ≫ P·α²."""
    drift = 0.01
    followed = started(1.0, noise, drift=drift)
    for step in range(1, 2000):
        followed.add(one(1.0, noise), step=step)
    variance = followed.relative_error**2
    assert variance == pytest.approx(drift * noise, rel=0.12)
    assert variance / noise**2 == pytest.approx(drift / noise, rel=0.12)


@pytest.mark.parametrize("first", [0.1, 10.0])
def test_follows_a_rate_that_walks_and_knows_its_own_error(first):
    """Simulated as the filter assumes it: errors in units of the filter's own error bar have mean square near 1."""
    draw = random.Random(1)
    squares = []
    for _ in range(40):
        x = 0.0
        followed = started(first, first, drift=0.03)
        for step in range(1, 400):
            x += draw.gauss(0.0, 0.03)
            followed.add(one(math.exp(x) + draw.gauss(0.0, 0.4), 0.4), step=step)
        squares.append(((math.log(followed.rate) - x) / followed.relative_error) ** 2)
    assert 0.5 < sum(squares) / len(squares) < 2.0


class Followed:
    """A filter fed from a seeded stream, for the resume harness; it starts at its third step."""

    def __init__(self) -> None:
        self.filter = RateFilter(drift=0.02, largest_factor=1.25)
        self.done = 0

    def advance(self) -> Any:
        draw = random.Random(self.done)
        if self.done == 2:
            self.filter.start(1e-3, 3e-4, step=2)
        elif self.done > 2:
            self.filter.add(one(draw.gauss(1e-3, 1e-3), 1e-3), step=self.done + self.done % 3)
        self.done += 1
        return self.filter.started, self.filter.rate, self.filter.relative_error if self.filter.started else None

    def state(self) -> Any:
        return {"done": self.done, "filter": self.filter.state_dict()}

    def restore(self, state: Any) -> None:
        self.done = state["done"]
        self.filter.load_state_dict(state["filter"])


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_restored_filter_continues_exactly(cut):
    assert_resumes(Followed, steps=12, cut=cut)
