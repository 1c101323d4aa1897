"""Which snapshots are kept, and since which of them is measured when."""

from __future__ import annotations

import itertools
import json
from functools import cache

import pytest

from stepsize.policies.horizon import HorizonPlan, HorizonWindows
from stepsize.policies.horizon.windows import FIRST_SERIES, FIRST_SNAPSHOT, LONGEST_GAP, MOST_STEPS


@cache
def plans(steps: int, *, endless: bool = False, wished: int = 1) -> list[tuple[int, HorizonPlan]]:
    windows = HorizonWindows(endless=endless)
    return [(t, windows.plan(t, rate=1.0, wished=wished)) for t in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("steps", "endless", "wished"),
    [(60_000, False, 1), (60_000, False, 3), (60_000, False, 8), (2 * MOST_STEPS, True, 8), (4 * MOST_STEPS, True, 1)],
)
def test_what_is_measured_is_there_and_no_more_than_three_snapshots_are(steps: int, endless: bool, wished: int) -> None:
    kept: set[int] = set()
    for _, plan in plans(steps, endless=endless, wished=wished):
        if plan.since is not None:
            assert plan.since in kept
        kept -= set(plan.forget)
        kept |= {_} if plan.keep else set()
        assert len(kept) <= 3


def test_horizons_are_about_a_quarter_of_the_run_once_it_is_long_enough() -> None:
    shares = [
        (t - plan.since) / t for t, plan in plans(60_000, endless=False, wished=1) if plan.since is not None and t > 100
    ]
    assert min(shares) > 0.14
    assert max(shares) < 0.29


def test_series_come_ever_more_seldom_until_they_follow_upon_one_another() -> None:
    begun = [(t, t - plan.since) for t, plan in plans(60_000) if plan.since is not None]
    shares = [(after - t) / t for (t, _), (after, _) in itertools.pairwise(begun)]
    early, late = (
        [s for s, (t, _) in zip(shares, begun, strict=False) if low <= t < high]
        for low, high in ((32, 50), (3000, 20_000))
    )
    assert 0.04 < min(early) <= max(early) <= 1 / 16
    assert 0.27 < min(late) <= max(late) <= 0.28
    assert max(after - t for (t, _), (after, _) in itertools.pairwise(begun)) == LONGEST_GAP


def test_without_an_end_the_horizon_is_bounded() -> None:
    found = [(t, t - plan.since) for t, plan in plans(4 * MOST_STEPS, endless=True, wished=1) if plan.since is not None]
    assert max(horizon for _, horizon in found) <= 0.29 * MOST_STEPS
    late = [t for t, _ in found if t > 2 * MOST_STEPS]
    assert all(after - before == LONGEST_GAP for before, after in itertools.pairwise(late))


def test_nothing_is_kept_before_the_single_steps_are_through() -> None:
    assert all(plan == HorizonPlan() for _, plan in plans(FIRST_SNAPSHOT - 1))
    assert plans(FIRST_SNAPSHOT)[-1] == (FIRST_SNAPSHOT, HorizonPlan(keep=True))
    early = [plan.since for _, plan in plans(FIRST_SERIES - 1)]
    assert set(early) == {None}, "few steps do not show what momentum still does with them"
    assert plans(FIRST_SERIES)[-1][1].since == FIRST_SNAPSHOT


@pytest.mark.parametrize("begun", [17, 20, 31, 40, 200])
def test_begun_in_the_middle_its_first_horizon_is_no_shorter(begun: int) -> None:
    """As in a run whose budget was extended, or that an earlier version began."""
    windows = HorizonWindows(endless=False)
    found = [(t, windows.plan(t, rate=1.0, wished=1)) for t in range(begun, begun + 100)]
    assert next(t - plan.since for t, plan in found if plan.since is not None) >= FIRST_SERIES - FIRST_SNAPSHOT


def test_it_goes_on_from_its_state_at_any_step() -> None:
    whole = [plan for _, plan in plans(600, wished=3)]
    for cut in range(0, 600, 7):
        first, second = HorizonWindows(endless=False), HorizonWindows(endless=False)
        before = [first.plan(t, rate=1.0, wished=3) for t in range(1, cut + 1)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + [second.plan(t, rate=1.0, wished=3) for t in range(cut + 1, 601)] == whole


def test_the_mean_rate_is_that_of_the_steps_since() -> None:
    windows = HorizonWindows(endless=False)
    for t in range(1, 60):
        plan = windows.plan(t, rate=float(t), wished=1)
        if plan.since is not None:
            assert windows.mean_rate == pytest.approx((plan.since + 1 + t) / 2)


def test_clearing_lets_go_of_everything() -> None:
    windows = HorizonWindows(endless=False)
    kept: set[int] = set()
    for t in range(1, 300):
        plan = windows.plan(t, rate=1.0, wished=1)
        kept = kept - set(plan.forget) | ({t} if plan.keep else set())
    assert set(windows.clear().forget) == kept
    assert windows.clear() == HorizonPlan()
