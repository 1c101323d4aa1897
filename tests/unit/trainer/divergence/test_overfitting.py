"""A run that evaluates worse and worse is told so once; noise is not."""

from __future__ import annotations

import json
import random

import pytest

from trainer.divergence import ValidationTrend


def told(losses: list[float], trend: ValidationTrend | None = None) -> list[int]:
    """The evaluations, counted from 0, after which something was told."""
    trend = trend or ValidationTrend()
    return [place for place, loss in enumerate(losses) if trend.add(100 * place, loss) is not None]


def test_a_loss_that_rises_beyond_its_noise_is_told_once_with_the_best_step() -> None:
    trend = ValidationTrend()
    falling, rising = [0.52, 0.50, 0.49, 0.485], [0.49, 0.495, 0.50, 0.51, 0.52, 0.54]
    assert told(falling + rising, trend) == [9]
    assert trend.best == (300, 0.485)
    assert trend.worse


def test_a_new_best_makes_it_worth_telling_again() -> None:
    rise = [0.50, 0.51, 0.52, 0.53]
    assert told([0.5, 0.49, 0.48, *rise, 0.47, *rise, *rise]) == [6, 11]


@pytest.mark.parametrize("seed", range(20))
def test_noise_about_a_plateau_is_none(seed: int) -> None:
    draw = random.Random(seed)
    assert told([0.48 + draw.gauss(0.0, 0.004) for _ in range(40)]) == []


def test_few_evaluations_tell_nothing() -> None:
    assert told([0.4, 0.5, 0.6, 0.7]) == []


def test_it_says_what_it_saw() -> None:
    trend = ValidationTrend()
    for step, loss in enumerate([0.5, 0.48, 0.49, 0.50, 0.51]):
        assert trend.add(1000 * step, loss) is None
    found = trend.add(5000, 0.52)
    assert str(found) == "validation loss rises: 0.52000 at step 5,000, after 0.48000 at step 1,000, its best"


def test_a_trend_that_is_restored_goes_on_alike() -> None:
    losses = [0.52, 0.50, 0.49, 0.485, 0.49, 0.495, 0.50, 0.51, 0.52, 0.54]
    for cut in range(1, len(losses)):
        first, second = ValidationTrend(), ValidationTrend()
        before = told(losses[:cut], first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + [cut + place for place in told(losses[cut:], second)] == [9]


@pytest.mark.parametrize(
    ("losses", "behind"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.501], False),
        ([0.5, 0.502], True),
        ([0.5, 0.48, 0.5], True),
        ([0.5, 0.48, 0.5, 0.48, 0.5, 0.481], False),  # evaluations scatter further than that
        ([0.5, 0.49, 0.48, 0.49, 0.5, 0.51, 0.52], True),
        ([0.5, 0.49, 0.48, 0.49, 0.5, 0.51, 0.4799], False),
    ],
)
def test_the_end_is_behind_the_best_where_it_is_worse_by_more_than_noise(losses: list[float], behind: bool) -> None:
    trend = ValidationTrend()
    told(losses, trend)
    assert trend.left_behind == behind
