"""The figures of a run that a person asks for first: speed, bound, best loss, and what α* says of the rate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.live import LEAST_ESTIMATES, measuring_gaps
from ops.step_clock import Bound, bound_of
from stepsize.pooling import pool
from trainer.records import Column, RunHistory

BINS = 40
"""At most so many stretches of steps along a figure of α*."""
BIN_ESTIMATES = 20
"""A stretch should hold about so many estimates for its quartiles to mean something."""


@dataclass(frozen=True, kw_only=True)
class AlphaBin:
    """The rate that α* suggests over a stretch of steps: quartiles of the estimates; and the rate that was applied."""

    first_step: int
    last_step: int
    estimates: int
    negative: int
    lower: float
    median: float
    upper: float
    pooled: float | None
    """Ratio of averages over the stretch, the consistent estimator; None if its curvature sums to zero."""
    learning_rate: float
    """Median rate of the steps that were measured."""
    after_gap: bool
    """Measuring paused before it."""

    @property
    def middle(self) -> float:
        return (self.first_step + self.last_step) / 2


@dataclass(frozen=True, kw_only=True)
class RateSummary:
    """α* over the whole run: by what factor the steps should have been longer."""

    estimates: int
    negative: int
    lower: float
    median: float
    upper: float
    pooled: float | None
    """−Σ dᵀg / Σ dᵀGd over the measured steps: the one factor that would have suited them best, each by what it did."""
    pooled_error: float | None

    @property
    def margin(self) -> float | None:
        """Half the width of the pooled factor's 95 % interval."""
        return None if self.pooled_error is None else 1.96 * self.pooled_error


def bound(log: RunHistory) -> Bound:
    """Whether the run was bound by data, by computing or by evaluations.

    The first step, which waits for the pipeline to fill, is left out if there are others.
    """
    steps = len(log.steps["step"])
    return bound_of(time_by_phase(log), steps=steps - 1 if steps > 1 else steps)


def time_by_phase(log: RunHistory) -> dict[str, float]:
    """Seconds of every phase of the run, pauses for evaluations and checkpoints included, longest first.

    The first step is left out if there are others. What a step's phases do not account for is `other`.
    """
    apart = 1 if len(log.steps["step"]) > 1 else 0
    totals = {name: float(np.nansum(seconds[apart:])) for name, seconds in log.phases.items()}
    unclaimed = float(np.nansum(log.steps["seconds"][apart:])) - sum(totals.values())
    totals["other"] = totals.get("other", 0.0) + max(unclaimed, 0.0)
    for name, seconds in log.pauses.items():
        totals[name] = totals.get(name, 0.0) + seconds
    return dict(sorted(((n, s) for n, s in totals.items() if s > 0), key=lambda item: -item[1]))


def alpha_bins(log: RunHistory) -> list[AlphaBin]:
    """The rate that α* suggests over stretches of the run; stretches with fewer than 3 estimates are left out.

    None at all from fewer than `LEAST_ESTIMATES` estimates.

    Estimates taken in bursts are kept together by burst, others are cut into stretches of equally many steps.
    """
    chosen = log.measured & np.isfinite(log.alpha["absolute"])
    table = {name: column[chosen] for name, column in log.alpha.items()}
    count = int(chosen.sum())
    if count < LEAST_ESTIMATES:
        return []
    gaps = measuring_gaps(table["step"].tolist())
    cuts = _burst_cuts(table["step"])
    if cuts is None:
        step = table["step"]
        edges = np.linspace(step[0], step[-1] + 1, max(1, min(BINS, count // BIN_ESTIMATES)) + 1)
        cuts = np.searchsorted(step, edges)
    cuts = np.union1d(cuts, np.array(gaps, dtype=np.int64))
    bins, stops = [], [0]
    for start, stop in itertools.pairwise(cuts.tolist()):
        if stop - start >= 3:
            paused = len(bins) > 0 and any(stops[-1] <= gap <= start for gap in gaps)
            bins.append(_bin({name: column[start:stop] for name, column in table.items()}, after_gap=paused))
            stops.append(stop)
    return bins


def _burst_cuts(step: Column) -> NDArray[np.int64] | None:
    """Where each burst of estimates begins, and the end of the last; None if they do not come in bursts.

    A long burst is cut into pieces, and neighbors are joined until there are at most `BINS`.
    """
    gaps = np.diff(step)
    if len(gaps) == 0:
        return None
    bursts = np.split(np.arange(len(step)), np.flatnonzero(gaps > 4 * np.median(gaps)) + 1)
    if len(bursts) < 3 or len(step) < 4 * len(bursts):
        return None
    pieces = [np.array_split(burst, max(1, len(burst) // BIN_ESTIMATES)) for burst in bursts]
    starts = np.array([piece[0] for burst in pieces for piece in burst])
    return np.append(starts[:: -(-len(starts) // BINS)], len(step))


def _bin(table: dict[str, Column], *, after_gap: bool) -> AlphaBin:
    lower, median, upper = np.quantile(table["absolute"], [0.25, 0.5, 0.75])
    pooled = pool(_per_rate(table))
    return AlphaBin(
        first_step=int(table["step"][0]),
        last_step=int(table["step"][-1]),
        estimates=len(table["step"]),
        negative=int((table["absolute"] < 0).sum()),
        lower=float(lower),
        median=float(median),
        upper=float(upper),
        pooled=None if pooled is None else pooled.rate,
        learning_rate=float(np.median(table["learning_rate"])),
        after_gap=after_gap,
    )


def rate_summary(log: RunHistory) -> RateSummary | None:
    """What α* says of the applied rate over the whole run; None from fewer than `LEAST_ESTIMATES` finite estimates."""
    chosen = log.measured
    if int(chosen.sum()) < LEAST_ESTIMATES:
        return None
    relative, slope, curvature = (log.alpha[name][chosen] for name in ("relative", "slope", "curvature"))
    lower, median, upper = np.quantile(relative, [0.25, 0.5, 0.75])
    both = np.isfinite(slope) & np.isfinite(curvature)
    pooled = pool(list(zip(slope[both].tolist(), curvature[both].tolist(), strict=True)))
    return RateSummary(
        estimates=len(relative),
        negative=int((relative < 0).sum()),
        lower=float(lower),
        median=float(median),
        upper=float(upper),
        pooled=None if pooled is None else pooled.rate,
        pooled_error=None if pooled is None else pooled.standard_error,
    )


def _per_rate(table: dict[str, Column]) -> list[tuple[float, float]]:
    """(slope/η, curvature/η²) of every estimate that has both."""
    rate = table["learning_rate"]
    usable = np.isfinite(table["slope"]) & np.isfinite(table["curvature"]) & (rate > 0)
    slope = table["slope"][usable] / rate[usable]
    curvature = table["curvature"][usable] / rate[usable] ** 2
    return list(zip(slope.tolist(), curvature.tolist(), strict=True))


def best_evaluation(log: RunHistory, split: str = "validation") -> dict[str, float] | None:
    """The evaluation of `split` with the lowest loss; None without a finite one."""
    table = log.evaluations.get(split)
    if table is None or not np.isfinite(table["loss"]).any():
        return None
    index = int(np.nanargmin(table["loss"]))
    return {name: float(column[index]) for name, column in table.items()}


def evaluation_at(log: RunHistory, split: str, step: float) -> dict[str, float] | None:
    """The evaluation of `split` after exactly `step` steps; None without one."""
    table = log.evaluations.get(split)
    if table is None or step not in table["step"]:
        return None
    index = int(np.flatnonzero(table["step"] == step)[0])
    return {name: float(column[index]) for name, column in table.items()}


def bin_means(values: Column, bins: int) -> Column:
    """The mean of `values` over at most `bins` stretches of equal length, NaN ignored."""
    cuts = _cuts(len(values), bins)
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0.0), cuts)
    counts = np.add.reduceat(finite.astype(np.float64), cuts)
    return np.divide(sums, counts, out=np.full(len(cuts), np.nan), where=counts > 0)


def bin_sums(values: Column, bins: int) -> Column:
    """The sum of `values` over at most `bins` stretches of equal length, NaN ignored."""
    return np.add.reduceat(np.nan_to_num(values), _cuts(len(values), bins))


def _cuts(count: int, bins: int) -> NDArray[np.int64]:
    """Where each of at most `bins` stretches of nearly equal length begins."""
    return np.unique(np.linspace(0, count, min(count, bins), endpoint=False).astype(np.int64))


def centered_mean(values: Column, half: int) -> Column:
    """The mean of `values` over `half` neighbors on either side (fewer at the ends), NaN ignored."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.divide(sums[high] - sums[low], count, out=np.full(len(values), np.nan), where=count > 0)
