"""Measurements from one snapshot pooled into one α_K; and the α_K that they should have."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from stepsize.estimate import Outcome
from stepsize.policies.horizon import HorizonSeries, target_of
from tests.estimates import estimate


def series(*, last: int = 9, since: int = 0) -> HorizonSeries:
    return HorizonSeries(since=since, first=9, last=last, mean_rate=1e-2)


def test_slopes_and_curvatures_are_averaged_not_their_ratios() -> None:
    found = series(last=10)
    found.add(estimate(8, 1.0, rate=1.0, curvature=1.0))
    assert not found.complete
    found.add(estimate(9, 4.0, rate=1.0, curvature=3.0))
    assert found.complete
    pooled = found.pooled(0.6)
    assert pooled is not None
    assert pooled[0] == pytest.approx((1.0 + 12.0) / 4.0)


def test_batches_without_a_positive_label_do_not_outweigh_those_with_one() -> None:
    """One batch in ten has the positives, nearly all of the slope and nearly all of the spread."""
    found = series(last=18)
    for step in range(8, 17):
        found.add(estimate(step, -0.1, error=1e-6, rate=1.0, curvature=0.2))
    found.add(estimate(17, 3.0, error=2.0, rate=1.0, curvature=2.0))
    pooled = found.pooled(0.6)
    assert pooled is not None
    assert pooled[0] == pytest.approx((9 * -0.1 * 0.2 + 3.0 * 2.0) / (9 * 0.2 + 2.0))
    assert math.sqrt(pooled[1]) > 1.0


def test_outcomes_without_a_number_are_told_and_do_not_count() -> None:
    found = series(last=12)
    for step, outcome in enumerate((Outcome.FLAT, Outcome.NONFINITE, Outcome.DROPPED, Outcome.STALE), start=8):
        found.add(estimate(step, outcome=outcome))
    assert (found.told, found.nonfinite, found.pooled(0.6)) == (4, 1, None)


def test_a_single_batch_of_few_rows_tells_nothing_and_many_by_their_scatter() -> None:
    one = series()
    one.add(replace(estimate(8, 1.0, rate=1.0), rows=2, slope_variance=0.0))
    assert one.pooled(0.6) is None
    many = series(last=16)
    for step, alpha in zip(range(8, 16), (0.0, 2.0) * 4, strict=True):
        many.add(replace(estimate(step, alpha, rate=1.0), rows=2, slope_variance=0.0))
    pooled = many.pooled(0.6)
    assert pooled is not None
    assert pooled[1] == pytest.approx(statistics.variance([0.0, 2.0] * 4) / 8, rel=1e-9)


def test_the_variance_is_the_one_there_is_if_the_rate_is_right() -> None:
    """A wild estimate must not count less because it is wild: weights that depend on the estimate bias the average."""
    generator = torch.Generator().manual_seed(0)
    variances = []
    for _ in range(200):
        noise = torch.randn((), generator=generator).item()
        found = series()
        wild = replace(estimate(8, 0.6 + noise, rate=1.0), slope_variance=1.0, curvature_variance=0.5, covariance=0.0)
        found.add(wild)
        pooled = found.pooled(0.6)
        assert pooled is not None
        variances.append(pooled[1])
    assert max(variances) == min(variances)


def test_it_is_made_again_from_its_state() -> None:
    found = series(last=11)
    found.add(estimate(8, 1.0, error=0.2, rate=1.0))
    assert HorizonSeries(**json.loads(json.dumps(found.state_dict()))) == found


@pytest.mark.parametrize(("t", "since", "expected"), [(1, 0, 1.0), (40, 32, 0.75), (44, 32, 0.5 + 2 / 12)])
def test_the_target_of_a_short_horizon_is_longer(t: int, since: int, expected: float) -> None:
    assert target_of(t, since) == pytest.approx(expected)


def test_the_target_of_a_share_of_the_run_is_the_logarithm_of_it() -> None:
    assert target_of(10_000, 7_200) == pytest.approx(0.5 - math.log(0.72) / 4)
    assert target_of(10_000, 0) == 1.0
    assert target_of(10_000_000, 9_972_000) == pytest.approx(0.5, abs=1e-3)
