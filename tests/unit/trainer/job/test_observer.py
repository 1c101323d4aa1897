"""What the terminal says of α*: one pooled factor with its margin, from the tenth estimate on."""

from __future__ import annotations

import math

import pytest

from trainer.job.observer import pooled_factor


def test_the_factor_is_the_pooled_rate_over_the_mean_applied_one() -> None:
    """Two rates, the same suggestion of 0.03: 0.03 over a mean rate of 0.015."""
    estimates = [(-3.0, 100.0, 0.01), (-6.0, 200.0, 0.02)] * 10
    factor = pooled_factor(estimates)
    assert factor.estimates == 20
    assert factor.factor == pytest.approx(2.0)
    assert factor.standard_error == pytest.approx(0.0, abs=1e-9)


def test_the_error_comes_from_the_scatter() -> None:
    """Slopes 1 ± 0.5 at curvature 1: standard deviation 0.5, error of the mean of n 0.5 / √(n − 1)."""
    factor = pooled_factor([(-0.5, 1.0, 1.0), (-1.5, 1.0, 1.0)] * 50)
    assert factor.factor == pytest.approx(1.0)
    assert factor.standard_error == pytest.approx(0.5 / math.sqrt(99))
    assert factor.margin == pytest.approx(1.96 * 0.5 / math.sqrt(99))


@pytest.mark.parametrize("estimates", [[(-1.0, 1.0, 1.0)] * 9, [(-1.0, 0.0, 1.0)] * 20])
def test_too_few_estimates_or_no_curvature_make_no_factor(estimates: list[tuple[float, float, float]]) -> None:
    factor = pooled_factor(estimates)
    assert factor.factor is None
    assert factor.estimates == len(estimates)
