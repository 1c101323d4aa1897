"""The summary's figures are those of plain definitions on small runs."""

from __future__ import annotations

import csv
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ops.bound import BoundKind
from tests.synthetic_run import write_lines, write_run
from trainer.records import Records, thinning
from trainer.records.history import RunHistory
from trainer.report.report import write_report
from trainer.report.summary import (
    BINS,
    alpha_bins,
    best_of_split,
    bin_means,
    bin_sums,
    bound,
    centered_mean,
    evaluation_at,
    quantiles,
    rate_summary,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RunHistory:
    return RunHistory.load(write_run(tmp_path_factory.mktemp("run"), 2000))


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("bins", [1, 3, 100])
def test_windows_cover_every_value_once(count: int, bins: int) -> None:
    values = np.arange(count, dtype=np.float64)
    sums, means = bin_sums(values, bins), bin_means(values, bins)
    assert len(sums) == len(means) == min(count, bins)
    assert sums.sum() == values.sum()
    assert (np.diff(means) > 0).all()


def test_windows_ignore_nan_and_say_where_there_is_nothing_else() -> None:
    values = np.array([1.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(bin_means(values, 2), [1.0, np.nan])


def test_centered_mean_is_the_plain_one() -> None:
    values = np.random.default_rng(0).normal(size=50)
    values[[3, 4, 20]] = np.nan
    expected = [np.nanmean(values[max(0, i - 4) : i + 5]) for i in range(50)]
    np.testing.assert_allclose(centered_mean(values, 4), expected, rtol=1e-12)


def test_bound_is_the_share_of_waiting(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 2.0, "phases": {"data_wait": 0.5, "forward": 1.5}} for step in range(3)]
    lines[0] = {"step": 0, "seconds": 9.0, "phases": {"data_wait": 9.0}}  # the pipeline fills
    write_lines(tmp_path / "steps.jsonl", lines)
    verdict = bound(RunHistory.load(tmp_path))
    assert verdict.kind is BoundKind.DATA
    assert verdict.data_share == 0.25
    assert bound(RunHistory.load(tmp_path / "nowhere")).kind is BoundKind.UNKNOWN


def test_alpha_bins_are_quartiles_of_every_measured_estimate(log: RunHistory) -> None:
    bins = alpha_bins(log)
    assert 5 < len(bins) <= BINS
    assert sum(one.estimates for one in bins) == log.measured.sum()
    assert sum(one.negative for one in bins) == (log.alpha["relative"] < 0).sum()
    for one in bins:
        inside = log.measured & (log.alpha["step"] >= one.first_step) & (log.alpha["step"] <= one.last_step)
        expected = statistics.quantiles(log.alpha["absolute"][inside], n=4, method="inclusive")
        assert [one.lower, one.median, one.upper] == pytest.approx(expected)
        rate = log.alpha["learning_rate"][inside]
        slope, curvature = log.alpha["slope"][inside] / rate, log.alpha["curvature"][inside] / rate**2
        assert one.pooled == pytest.approx(-slope.mean() / curvature.mean())


def test_estimates_taken_in_bursts_are_kept_together(tmp_path: Path) -> None:
    steps = [start + i for start in range(0, 1000, 100) for i in range(10)]
    lines = [
        {"step": step, "outcome": "ok", "relative": 1.0, "absolute": 1.0 + step // 100, "learning_rate": 1.0}
        for step in steps
    ]
    write_lines(tmp_path / "alpha.jsonl", lines)
    bins = alpha_bins(RunHistory.load(tmp_path))
    assert [(one.first_step, one.last_step) for one in bins] == [(s, s + 9) for s in range(0, 1000, 100)]
    assert [one.median for one in bins] == [1.0 + burst for burst in range(10)]


def test_a_long_burst_is_cut(tmp_path: Path) -> None:
    steps = [*range(100), *range(200, 210), *range(300, 310)]
    lines = [{"step": s, "outcome": "ok", "relative": 1.0, "absolute": 1.0, "learning_rate": 1.0} for s in steps]
    write_lines(tmp_path / "alpha.jsonl", lines)
    bins = alpha_bins(RunHistory.load(tmp_path))
    assert [one.first_step for one in bins] == [0, 20, 40, 60, 80, 200, 300]


def test_many_bursts_are_joined(tmp_path: Path) -> None:
    steps = [start + i for start in range(0, 20_000, 100) for i in range(5)]
    lines = [{"step": s, "outcome": "ok", "relative": 1.0, "absolute": 1.0, "learning_rate": 1.0} for s in steps]
    write_lines(tmp_path / "alpha.jsonl", lines)
    bins = alpha_bins(RunHistory.load(tmp_path))
    assert len(bins) == BINS
    assert sum(one.estimates for one in bins) == len(steps)


def test_rate_summary_finds_the_factor_the_log_was_made_with(log: RunHistory) -> None:
    rates = rate_summary(log)
    assert rates is not None
    assert rates.pooled is not None
    assert rates.pooled_error is not None
    assert 1.5 < rates.median < 2.5
    assert rates.lower < rates.median < rates.upper
    assert rates.negative == (log.alpha["relative"] < 0).sum()
    assert rates.estimates == log.measured.sum()


def test_pooled_rate_of_estimates_without_noise_is_exact(tmp_path: Path) -> None:
    lines = [
        {"step": step, "outcome": "ok", "slope": -3.0, "curvature": 1.5, "relative": 2.0, "learning_rate": 0.1}
        for step in range(10)
    ]
    write_lines(tmp_path / "alpha.jsonl", lines)
    rates = rate_summary(RunHistory.load(tmp_path))
    assert rates is not None
    assert rates.pooled == pytest.approx(2.0)
    assert rates.pooled_error == pytest.approx(0.0, abs=1e-6)


def test_steps_of_a_warm_up_hardly_move_the_pooled_factor(tmp_path: Path) -> None:
    """Twenty steps of 1e-6 whose α* is 1000, then twenty of 0.1 whose α* is 0.5: Σ dᵀg over Σ dᵀGd by hand."""
    short = {"slope": -1e-6, "curvature": 1e-9, "relative": 1000.0, "learning_rate": 1e-6}
    usual = {"slope": -0.5, "curvature": 1.0, "relative": 0.5, "learning_rate": 0.1}
    lines = [{"step": step, "outcome": "ok", **(short if step < 20 else usual)} for step in range(40)]
    write_lines(tmp_path / "alpha.jsonl", lines)
    rates = rate_summary(RunHistory.load(tmp_path))
    assert rates is not None
    assert rates.pooled == pytest.approx((20 * 1e-6 + 20 * 0.5) / (20 * 1e-9 + 20 * 1.0))


def test_one_step_that_outweighs_all_others_is_no_pooled_factor(tmp_path: Path) -> None:
    """Its ratio would have an error of nothing, and be all that the others' is not."""
    usual = {"slope": -0.5, "curvature": 1.0, "relative": 0.5, "learning_rate": 0.1}
    wild = {"slope": -9e13, "curvature": 1e12, "relative": 90.0, "learning_rate": 0.1}
    lines = [{"step": step, "outcome": "ok", **(wild if step == 39 else usual)} for step in range(40)]
    write_lines(tmp_path / "alpha.jsonl", lines)
    rates = rate_summary(RunHistory.load(tmp_path))
    assert rates is not None
    assert (rates.pooled, rates.pooled_error, rates.median) == (None, None, 0.5)


@pytest.mark.parametrize("whole", [1, 2])
def test_a_factor_of_one_or_two_estimates_is_shown_though_the_others_lack_a_slope(tmp_path: Path, whole: int) -> None:
    """Of so few it cannot be told whether one outweighs the others; their curvatures differ."""
    lines = [{"step": step, "outcome": "ok", "relative": 2.0, "learning_rate": 0.1} for step in range(12)]
    for step in range(whole):
        lines[step] |= {"slope": -3.0 / (step + 1), "curvature": 1.5 / (step + 1)}
    write_lines(tmp_path / "alpha.jsonl", lines)
    rates = rate_summary(RunHistory.load(tmp_path))
    assert rates is not None
    assert rates.pooled == pytest.approx(2.0)


def test_without_a_finite_estimate_there_is_no_rate_summary(tmp_path: Path) -> None:
    write_lines(tmp_path / "alpha.jsonl", [{"step": 0, "outcome": "dropped", "relative": None}])
    empty = RunHistory.load(tmp_path)
    assert rate_summary(empty) is None
    assert alpha_bins(empty) == []


def test_the_best_evaluation_passes_over_what_is_not_finite(log: RunHistory, tmp_path: Path) -> None:
    best = best_of_split(log)
    assert best is not None
    assert best["step"] == 1750
    test = evaluation_at(log, "test", best["step"])
    assert test is not None
    assert test["loss"] == pytest.approx(best["loss"] + 0.006)
    assert evaluation_at(log, "test", 1) is None
    write_lines(tmp_path / "evals.jsonl", [{"step": 1, "split": "validation", "loss": None}])
    assert best_of_split(RunHistory.load(tmp_path)) is None


def thinned_run(path: Path, steps: int, *, full_steps: int = 512) -> Path:
    """`write_run`, its lines merged as those of a run of ten times as many steps."""
    write_run(path, steps, variants=True)
    for name in ("steps", "alpha"):
        records = Records(path / f"{name}.jsonl", one_a_step=True)
        records.rewrite(partial(thinning, records.path, done=10 * steps, full_steps=full_steps, checkpoints=[]))
        records.close()
    return path


def test_a_thinned_run_has_the_same_figures(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", 4000, variants=True)
    whole = RunHistory.load(tmp_path / "whole")
    thin = RunHistory.load(thinned_run(tmp_path / "thin", 4000))
    assert len(thin.steps["step"]) < 1000
    assert len(thin.alpha["step"]) < len(whole.alpha["step"]) / 2
    assert thin.thinned
    assert not whole.thinned
    assert thin.step_count == 4000
    assert thin.outcomes == whole.outcomes
    assert thin.phase_totals == pytest.approx(whole.phase_totals, rel=1e-12)
    assert bound(thin).data_share == pytest.approx(bound(whole).data_share, rel=1e-9)
    rates, exact = rate_summary(thin), rate_summary(whole)
    assert rates is not None
    assert exact is not None
    assert (rates.estimates, rates.negative) == (exact.estimates, exact.negative)
    assert rates.pooled == pytest.approx(exact.pooled, rel=1e-12)
    assert rates.pooled_error == pytest.approx(exact.pooled_error, rel=1e-9)
    for name in ("seconds", "learning_rate"):
        (values, counts), (all_values, _) = thin.values(name), whole.values(name)
        assert counts.sum() == 4000
        for share in (0.01, 0.5, 0.99):
            [found] = quantiles(values, [share], counts)
            assert found == pytest.approx(np.quantile(all_values, share), rel=0.011)
    steps, losses = whole.steps["steps"], whole.steps["loss"]
    for bins in (1, 5):
        means = bin_means(thin.steps["loss"], bins, steps=thin.steps["steps"], counts=thin.steps["finite_losses"])
        # a block across a border lies with the stretch before: 128 of 800 steps, a loss that falls by a tenth
        np.testing.assert_allclose(
            means, bin_means(losses, bins, steps=steps), rtol=1e-12 if bins == 1 else 0.1 * 128 / 800
        )
    assert sum(one.estimates for one in alpha_bins(thin)) == sum(one.estimates for one in alpha_bins(whole))


def test_the_tables_of_a_thinned_run_are_those_of_the_whole_one(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", 2000, variants=True)
    thinned_run(tmp_path / "thin", 2000)
    tables = {}
    for name in ("whole", "thin"):
        write_report(tmp_path / name)
        with (tmp_path / name / "report" / "summary.csv").open(encoding="utf-8") as file:
            tables[name] = {row["figure"]: row["value"] for row in csv.DictReader(file)}
    assert tables["thin"].keys() == tables["whole"].keys()
    sampled = {figure for figure in tables["whole"] if "quartile" in figure or "estimates of α*, median" in figure}
    for figure, value in tables["whole"].items():
        if figure not in sampled:
            near = 0.011 if "median" in figure or "percentile" in figure else 1e-9
            assert float(tables["thin"][figure]) == pytest.approx(float(value), rel=near), figure
    assert len(sampled) == 3
    page = (tmp_path / "thin" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Lines of older steps are merged" in page
    assert "Lines of older steps are merged" not in (tmp_path / "whole" / "report" / "index.html").read_text()


def test_weighted_quantiles_are_those_of_the_repeated_sample() -> None:
    rng = np.random.default_rng(3)
    values, counts = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    shares = [0.0, 0.1, 0.25, 0.5, 0.98, 1.0]
    np.testing.assert_allclose(
        quantiles(values, shares, counts), np.quantile(np.repeat(values, counts.astype(int)), shares), rtol=1e-12
    )


def test_weighted_means_are_those_of_the_repeated_steps() -> None:
    rng = np.random.default_rng(4)
    values, steps = rng.normal(size=40), rng.integers(1, 6, 40).astype(float)
    whole = np.repeat(values, steps.astype(int))
    assert bin_means(values, 1, steps=steps) == pytest.approx(whole.mean())
    middle = np.cumsum(steps) - steps
    smooth = centered_mean(values, len(whole), steps=steps)
    np.testing.assert_allclose(smooth, whole.mean())
    narrow = centered_mean(values, 1, steps=steps)
    for row, start in enumerate(middle.astype(int)):
        reached = [other for other, begin in enumerate(middle) if start - 1 <= begin < start + steps[row] + 1]
        assert narrow[row] == pytest.approx(np.average(values[reached], weights=steps[reached]))
