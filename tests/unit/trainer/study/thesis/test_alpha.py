"""The statistics of α* along a run are those of its estimates, the first left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.synthetic_run import write_lines
from tests.synthetic_study import estimate, numbers
from trainer.study.thesis.alpha import Estimates, burst_figure, decomposition_figure, statistics


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two bursts of five steps; the first estimate is wild, the last has no number."""
    run = tmp_path_factory.mktemp("run")
    records = [estimate(step) for step in (*range(5), *range(100, 105))]
    records[0] |= numbers(-1e12, 1e-12, 1e-3)
    empty = dict.fromkeys(("slope", "curvature", "relative", "absolute"))
    write_lines(run / "alpha.jsonl", [*records, {**estimate(105), **empty, "outcome": "dropped"}])
    return run, records[1:]


def test_statistics(records: tuple[Path, list[dict[str, Any]]]) -> None:
    run, kept = records
    estimates = Estimates.load(run)
    assert estimates is not None
    found = statistics(estimates)
    unbiased = np.array([record["absolute"] for record in kept])
    biased = np.array([record["biased"]["absolute"] for record in kept])
    assert found["estimates"] == 9
    assert found["unbiased_absolute_mean"] == pytest.approx(unbiased.mean())
    assert found["unbiased_absolute_median"] == pytest.approx(np.median(unbiased))
    assert found["unbiased_absolute_sd"] == pytest.approx(unbiased.std(ddof=1))
    assert found["unbiased_absolute_sd_over_mean"] == pytest.approx(unbiased.std(ddof=1) / unbiased.mean())
    assert found["unbiased_absolute_sd_over_range"] == pytest.approx(unbiased.std(ddof=1) / np.ptp(unbiased))
    assert found["unbiased_negative"] == (unbiased < 0).sum() > 0
    assert found["unbiased_negative_share"] == pytest.approx((unbiased < 0).mean())
    assert found["biased_absolute_mean"] == pytest.approx(biased.mean())
    assert found["biased_relative_median"] == pytest.approx(
        np.median([record["biased"]["relative"] for record in kept])
    )
    assert found["correlation_absolute"] == pytest.approx(stats.pearsonr(biased, unbiased)[0])
    assert found["cosine_b1_mean"] == pytest.approx(-0.01 * np.mean([record["step"] for record in kept]))


def test_the_parts_of_the_bias_sum_to_it(records: tuple[Path, list[dict[str, Any]]]) -> None:
    run, kept = records
    estimates = Estimates.load(run)
    assert estimates is not None
    found = statistics(estimates)
    bias = np.mean([record["relative"] - record["biased"]["relative"] for record in kept])
    assert found["hybrid_less_biased"] + found["unbiased_less_hybrid"] == pytest.approx(bias)
    slope_share = np.mean([record["hybrid"]["relative"] - record["biased"]["relative"] for record in kept])
    assert found["hybrid_less_biased"] == pytest.approx(slope_share)


def test_estimates_of_consecutive_steps_are_a_burst(records: tuple[Path, list[dict[str, Any]]]) -> None:
    estimates = Estimates.load(records[0])
    assert estimates is not None
    assert [estimates.step[burst].tolist() for burst in estimates.bursts()] == [
        [1, 2, 3, 4],
        [100, 101, 102, 103, 104],
    ]
    lines = {line.get_label(): line for line in burst_figure(estimates, title="a run").axes[0].lines}
    expected = [np.mean([record["relative"] for record in records[1][part]]) for part in (slice(4), slice(4, 9))]
    np.testing.assert_allclose(np.asarray(lines["unbiased"].get_ydata()), expected)


def test_steps_of_different_intervals_are_different_bursts(records: tuple[Path, list[dict[str, Any]]]) -> None:
    estimates = Estimates.load(records[0])
    assert estimates is not None
    assert [estimates.step[burst].tolist() for burst in estimates.bursts(3)] == [
        [1, 2],
        [3, 4],
        [100, 101],
        [102, 103, 104],
    ]


def test_the_decomposition_is_drawn_by_burst(records: tuple[Path, list[dict[str, Any]]]) -> None:
    run, kept = records
    estimates = Estimates.load(run)
    assert estimates is not None
    slope, curvature = decomposition_figure(estimates, title="a run").axes[0].lines[:2]
    biased, hybrid, unbiased = (
        np.array([each["relative"] for each in which])
        for which in ([one["biased"] for one in kept], [one["hybrid"] for one in kept], kept)
    )
    parts = (slice(4), slice(4, 9))
    np.testing.assert_allclose(np.asarray(slope.get_ydata()), [(hybrid - biased)[part].mean() for part in parts])
    np.testing.assert_allclose(np.asarray(curvature.get_ydata()), [(unbiased - hybrid)[part].mean() for part in parts])


def test_a_run_without_numbers_has_no_statistics(tmp_path: Path) -> None:
    assert Estimates.load(tmp_path) is None
    write_lines(tmp_path / "alpha.jsonl", [estimate(0)])  # the first is left out
    assert Estimates.load(tmp_path) is None
    write_lines(tmp_path / "alpha.jsonl", [estimate(0), estimate(1)])
    estimates = Estimates.load(tmp_path)
    assert estimates is not None
    assert math.isnan(statistics(estimates)["correlation_slope"])
