"""Pooled rates: the ratio of averages, its standard error and coverage, and what is left out."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from stepsize import SquaredError, StepSizeWorker
from stepsize.estimate import Estimate, Outcome
from stepsize.pooling import RatioSums, median_rate, per_rate, pool


def draw_pairs(seed: int, number: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    return [(draw.gauss(-2.0, 3.0), abs(draw.gauss(4.0, 2.0))) for _ in range(number)]


def test_pool_is_the_ratio_of_averages_with_the_delta_method():
    pairs = draw_pairs(0, 40)
    slope, curvature = (np.array(column) for column in zip(*pairs, strict=True))
    pooled = pool(pairs)
    assert pooled is not None
    rate = -slope.mean() / curvature.mean()
    residual = slope + rate * curvature  # mean zero by the choice of rate
    assert pooled.rate == pytest.approx(rate, rel=1e-12)
    assert pooled.standard_error == pytest.approx(residual.std(ddof=1) / math.sqrt(40) / curvature.mean(), rel=1e-9)
    assert pooled.effective_count == pytest.approx(40)
    assert (pooled.slope, pooled.curvature) == pytest.approx((slope.mean(), curvature.mean()))


def test_running_sums_equal_the_weighted_sums_written_out():
    pairs, decay = draw_pairs(1, 200), 0.95
    sums = RatioSums(decay=decay)
    for pair in pairs:
        sums.add(*pair)
    slope, curvature = (np.array(column) for column in zip(*pairs, strict=True))
    weight = decay ** np.arange(199, -1, -1)
    rate = -(weight * slope).sum() / (weight * curvature).sum()
    count = weight.sum() ** 2 / (weight**2).sum()
    scatter = ((weight * (slope + rate * curvature)) ** 2).sum() * count / (count - 1)
    pooled = sums.pooled()
    assert pooled is not None
    assert pooled.rate == pytest.approx(rate, rel=1e-12)
    assert pooled.effective_count == pytest.approx(count, rel=1e-12)
    assert pooled.standard_error == pytest.approx(math.sqrt(scatter) / (weight * curvature).sum(), rel=1e-9)


@pytest.mark.parametrize("pairs", [[], [(-1.0, 0.0), (-2.0, 0.0)]])
def test_nothing_to_divide_by_gives_none(pairs):
    assert pool(pairs) is None


def test_one_pair_has_a_rate_but_no_error_bar():
    pooled = pool([(-1.0, 4.0)])
    assert pooled is not None
    assert pooled.rate == 0.25
    assert pooled.standard_error is None
    assert pooled.interval() == (-math.inf, math.inf)


def test_curvatures_of_which_one_outweighs_the_others_are_worth_one():
    alike, wild = [(-1.0, 4.0), (-2.0, 4.0), (-3.0, 4.0)], (-9e13, 1e12)
    pooled = [pool(pairs) for pairs in (alike, [*alike * 50, wild], [*alike, (-1e-200, 1e-200)], [(-1e-200, 1e-200)])]
    assert [round(one.curvature_count, 6) for one in pooled if one] == [3.0, 1.0, 3.0, 1.0]
    assert [one.borne for one in pooled if one] == [True, False, True, True]  # one alone cannot be judged
    assert pooled[1]
    assert pooled[1].standard_error is not None
    assert pooled[1].standard_error < 1e-6 * pooled[1].rate  # as if 90 were known to every digit


@pytest.mark.parametrize(
    ("curvatures", "borne"),
    [
        ([4.0], True),
        ([4.0, 1.0], True),
        ([51.0, 49.0], True),
        ([51e12, 49e12, *[4.0] * 50], False),
        ([5.0, 4.9, 4.0], True),
        ([8.0, 1.0, 1.0], False),
    ],
)
def test_one_or_two_that_have_most_of_the_curvature_bear_no_rate_of_many(curvatures: list[float], borne: bool):
    pooled = pool([(-1.0, curvature) for curvature in curvatures])
    assert pooled is not None
    assert pooled.borne is borne


def test_median_is_the_midpoint_for_an_even_number():
    assert median_rate([4.0, 1.0, 3.0, -2.0]) == 2.0


def test_restored_pools_continue_exactly():
    pairs = draw_pairs(4, 20)
    whole, first, second = (RatioSums(decay=0.9) for _ in range(3))
    for pair in pairs[:12]:
        whole.add(*pair)
        first.add(*pair)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for pair in pairs[12:]:
        whole.add(*pair)
        second.add(*pair)
    assert second.pooled() == whole.pooled()


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_outcomes_with_a_number_are_pooled(outcome):
    made = Estimate(
        step=0,
        age=0,
        outcome=outcome,
        learning_rate=0.5,
        rows=8,
        slope=-3.0,
        curvature=2.0,
        relative=1.5,
        absolute=0.75,
        standard_error=None,
    )
    expected = (-6.0, 8.0) if outcome in (Outcome.OK, Outcome.ASCENT) else None
    assert per_rate(made) == expected


def population_trials(trials: int, number: int, rows: int) -> np.ndarray:
    """(trials, number, 2) slopes and curvatures per rate of a linear model whose population values are known.

    Squared error ½(xᵀθ − y)², y = noise; x is (1, 0) with probability 0.7, else (0, 2), as a common and a
    rare category are; at θ along a fixed direction d. A row's slope is (xᵀθ − y)·xᵀd, its curvature (xᵀd)².
    """
    draw = np.random.default_rng(11)
    theta, d = np.array([1.0, -0.5]), np.array([-0.6, 0.8])
    rare = draw.random((trials, number, rows, 1)) < 0.3
    x = np.where(rare, np.array([0.0, 2.0]), np.array([1.0, 0.0]))
    y = draw.standard_normal((trials, number, rows)) * 2.0
    moved = x @ d
    slope = ((x @ theta - y) * moved).mean(-1)
    curvature = (moved**2).mean(-1)
    return np.stack([slope, curvature], axis=-1)


TRUE_RATE = (0.7 * 0.6 + 0.3 * 1.6) / (0.7 * 0.36 + 0.3 * 2.56)
"""−E[slope] / E[curvature] of population_trials: slopes −0.6 and −1.6, curvatures 0.36 and 2.56."""


@pytest.mark.parametrize("decay", [1.0, 0.97])
def test_the_95_percent_interval_covers_the_truth_in_2000_trials(decay):
    trials = population_trials(2000, 60, 16)
    inside = 0
    for pairs in trials.tolist():
        pool = RatioSums(decay=decay)
        for slope, curvature in pairs:
            pool.add(slope, curvature)
        pooled = pool.pooled()
        assert pooled is not None
        low, high = pooled.interval(0.95)
        inside += low <= TRUE_RATE <= high
    assert 0.93 <= inside / len(trials) <= 0.97


def test_a_single_estimate_s_own_error_bar_covers_the_truth_in_2000_trials():
    """The same population, measured by the worker itself: its 95 % interval from 400 rows."""
    theta, d = torch.tensor([[1.0, -0.5]]), torch.tensor([[-0.6, 0.8]])
    model = torch.nn.Linear(2, 1, bias=False)
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=1.0), SquaredError(halved=True))
    draw = torch.Generator().manual_seed(11)
    inside = 0
    for step in range(2000):
        rare = torch.rand(400, 1, generator=draw) < 0.3
        x = torch.where(rare, torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        y = 2 * torch.randn(400, 1, generator=draw)
        with torch.no_grad():
            model.weight.copy_(theta)
            with worker.around_step(x, y, step=step):
                model.weight.add_(d)
        [found] = worker.poll()
        assert found.relative is not None
        assert found.standard_error is not None
        inside += abs(found.relative - TRUE_RATE) <= 1.96 * found.standard_error
    assert 0.93 <= inside / 2000 <= 0.97


def test_the_average_of_ratios_is_biased_where_the_ratio_of_averages_is_not():
    trials = population_trials(2000, 60, 16)
    ratios = -trials[..., 0] / trials[..., 1]
    averages = ratios.mean(1)
    pooled = np.array([-pairs[:, 0].mean() / pairs[:, 1].mean() for pairs in trials])
    one = pool([(slope, curvature) for slope, curvature in trials[0].tolist()])
    assert one is not None
    assert one.rate == pytest.approx(pooled[0])
    error = math.hypot(pooled.std(ddof=1), averages.std(ddof=1)) / math.sqrt(len(pooled))
    bias, pooled_bias = averages.mean() - TRUE_RATE, pooled.mean() - TRUE_RATE
    assert bias > 10 * error
    assert abs(pooled_bias) < 4 * error
    assert bias > 10 * abs(pooled_bias)
