"""What is taken to be left to gain that a horizon does not show."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from stepsize.policies.horizon import HorizonSeries, UnseenGain
from tests.estimates import estimate


def series(*, curvature: float, loss: float) -> HorizonSeries:
    found = HorizonSeries(since=90, first=120, last=120, mean_rate=1e-2)
    found.add(replace(estimate(120, 0.5, rate=1.0, curvature=curvature), loss=loss))
    return found


def gain(*measured: tuple[float, float], first_loss: float | None = None) -> float:
    """Of horizons of 30 of 120 steps, after series of these curvatures and losses; over the logarithm."""
    unseen = UnseenGain()
    unseen.first_loss = first_loss
    for curvature, loss in measured:
        unseen.add(series(curvature=curvature, loss=loss))
    return unseen.of_horizon(done=120, since=90) / math.log(120 / 90)


def test_it_is_a_hundredth_of_the_loss_in_units_of_the_curvature() -> None:
    assert gain((0.2, 3.0)) == pytest.approx(0.01 * 3.0 / 0.2)


def test_one_series_of_hardly_any_curvature_is_averaged_with_those_before() -> None:
    """Alone it would say that the rattling costs a thousandth of what it does."""
    assert gain((0.2, 1.0), (0.2, 1.0), (0.2, 1.0), (2e-4, 1.0)) == pytest.approx(0.01 / 0.15, rel=1e-3)


def test_what_was_before_counts_ever_less() -> None:
    """The average of four is a quarter of the latest and three quarters of what it was."""
    assert gain((1.0, 1.0), *[(0.2, 1.0)] * 3) == pytest.approx(0.01 / 0.4)
    assert gain((1.0, 1.0), *[(0.2, 1.0)] * 7) == pytest.approx(0.01 / (0.2 + 0.2 * 0.75**4))


@pytest.mark.parametrize(
    ("loss", "share"),
    [(0.5, 0.01), (0.89, 0.01), (0.9, 0.01), (0.95, 0.06), (1.0, 0.11), (1.01, 0.09), (1.05, 0.01), (9.0, 0.01)],
)
def test_there_is_more_where_nothing_is_learned(loss: float, share: float) -> None:
    assert gain((0.2 * loss, 2.0 * loss), first_loss=2.0) == pytest.approx(share * 2.0 / 0.2)


@pytest.mark.parametrize("loss", [0.9, 1.05])
def test_what_was_learned_stays_learned(loss: float) -> None:
    """By then, or before it was lost."""
    assert gain(*[(0.2, loss)] * 4, *[(0.2, 1.0)] * 40, first_loss=1.0) == pytest.approx(0.01 / 0.2, rel=1e-3)
    assert gain(*[(0.2, loss)] * 3, *[(0.2, 1.0)] * 40, first_loss=1.0) > 0.011 / 0.2
    assert gain(*[(0.2, 1.0)] * 44, first_loss=1.0) == pytest.approx(0.11 / 0.2)


def test_a_loss_that_is_not_above_zero_tells_nothing_and_begins_anew() -> None:
    assert gain((0.2, 1.0), (0.2, -1.0)) == gain((0.2, 0.0)) == gain() == 0.0
    assert gain((9.0, 1.0), (0.2, -1.0), (0.2, 1.0)) == pytest.approx(0.01 / 0.2)


def test_a_horizon_from_the_first_step_on_has_none() -> None:
    unseen = UnseenGain()
    unseen.add(series(curvature=0.2, loss=1.0))
    assert unseen.of_horizon(done=8, since=0) == 0.0


def test_it_is_what_it_was_once_restored() -> None:
    unseen = UnseenGain()
    unseen.first_loss = 1.0
    for number in range(6):
        unseen.add(series(curvature=0.2, loss=0.97))
        restored = UnseenGain()
        restored.load_state_dict(json.loads(json.dumps(unseen.state_dict())))
        for one in (unseen, restored):
            one.add(series(curvature=0.1, loss=0.99 + 0.01 * number))
        once, again = (one.of_horizon(done=120, since=90) for one in (unseen, restored))
        assert again == once > 0


def test_one_batch_of_hardly_any_loss_has_not_gained_all() -> None:
    """As one without a positive of a rare label."""
    unseen = UnseenGain()
    assert unseen.gained == 0.0
    unseen.first_loss = 1.0
    for loss in (0.04, 0.04, 0.04, 1e-9):
        unseen.add(series(curvature=0.2, loss=loss))
    assert unseen.gained == pytest.approx(0.97)
