"""The ratio of exponential averages: what moves the rate, how far, and what is said."""

from __future__ import annotations

import random

import pytest

from stepsize.policies.cadence import Cadence
from stepsize.policies.ema import Ema
from stepsize.policies.rates import Bounds
from tests.estimates import SILENT, estimate


def ema(*, start: int = 0, pooling: int = 10, clip: float = 1.25, low: float = 1e-8, high: float = 1.0) -> Ema:
    cadence = Cadence(interval=100, count=10, start=start)
    return Ema(cadence=cadence, bounds=Bounds(low=low, high=high), pooling=pooling, clip=clip)


def test_ema_leaves_the_schedule_its_steps_before_start():
    policy = ema(start=5)
    assert [policy.learning_rate(step, 0.1 * step) for step in range(5)] == [0.1 * step for step in range(5)]
    assert policy.observe(estimate(4, 1e-2)) is None
    assert policy.learning_rate(5, 0.5) == 0.5
    assert policy.learning_rate(6, 0.9) == 0.5, "from start on the schedule has no say"
    policy.observe(estimate(4, 1e-2, age=2))
    assert policy.learning_rate(7, 0.9) == 0.5, "nor has what was measured before it"


def test_ema_waits_for_a_schedule_that_begins_at_zero():
    policy = ema()
    assert policy.learning_rate(0, 0.0) == 0.0
    assert policy.observe(estimate(0, 1e-2)) is None
    assert policy.learning_rate(1, 1e-3) == 1e-3


def test_ema_is_the_ratio_of_exponential_averages_written_out():
    policy, draw, decay = ema(pooling=20, clip=1e9), random.Random(0), 1 - 1 / 20
    policy.learning_rate(0, 1e-3)
    slope = curvature = 0.0
    for step in range(60):
        absolute, bend = draw.uniform(0.5e-3, 3e-3), draw.uniform(1.0, 5.0)
        slope, curvature = decay * slope - absolute * bend, decay * curvature + bend
        policy.observe(estimate(step, absolute, curvature=bend, rate=draw.choice([1e-4, 1e-2])))
        assert policy.learning_rate(step + 1, 7.0) == pytest.approx(-slope / curvature, rel=1e-12)


@pytest.mark.parametrize(("absolute", "factor"), [(1.0, 1.25), (1e-7, 0.8)])
def test_ema_moves_by_the_clip_at_most(absolute, factor):
    policy = ema()
    policy.learning_rate(0, 1e-3)
    for step in range(4):
        policy.observe(estimate(step, absolute))
        assert policy.learning_rate(step + 1, 7.0) == pytest.approx(1e-3 * factor ** (step + 1))


def test_ema_keeps_its_rate_where_the_ratio_is_not_positive():
    policy = ema()
    policy.learning_rate(0, 1e-3)
    assert policy.observe(estimate(0, -5.0)) is None
    assert policy.learning_rate(1, 7.0) == 1e-3


def test_ema_stays_within_its_bounds():
    policy = ema(low=5e-4, high=2e-3)
    assert policy.learning_rate(0, 1.0) == 2e-3
    for step in range(20):
        policy.observe(estimate(step, 1.0))
    assert policy.learning_rate(20, 1.0) == 2e-3
    for step in range(20, 200):
        policy.observe(estimate(step, 1e-7))
    assert policy.learning_rate(200, 1.0) == 5e-4


def test_ema_says_so_once_the_rate_has_moved_by_half():
    policy = ema()
    policy.learning_rate(0, 1e-3)
    said = [policy.observe(estimate(step, 1.0, age=2)) for step in range(3)]
    assert said == [None, "step 4: rate 1.00e-3 → 1.56e-3 (ratio of averages 1.00e0, worth 2 estimates)", None]


@pytest.mark.parametrize("outcome", SILENT)
def test_outcomes_without_a_number_leave_ema_as_it_is(outcome):
    policy = ema()
    policy.learning_rate(0, 1e-3)
    policy.observe(estimate(0, 2e-3))
    before = policy.state_dict()
    assert policy.observe(estimate(1, outcome=outcome)) is None
    after = policy.state_dict()
    assert (after["sums"], after["rate"]) == (before["sums"], before["rate"])
