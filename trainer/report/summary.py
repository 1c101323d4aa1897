"""The figures of a run that a person asks for first: speed, bound, best loss, and what α* says of the rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.bound import Bound, bound_of
from ops.live import LEAST_ESTIMATES, measuring_gaps
from stepsize.pooling import RatioSums
from trainer.records import Column, RunHistory, lowest_loss

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
    """−Σ dᵀg / Σ dᵀGd over the measured steps: the one factor that would have suited them best, each by what it did.
    None if their curvature sums to nothing, or one or two of many have most of it."""
    pooled_error: float | None

    @property
    def margin(self) -> float | None:
        """Half the width of the pooled factor's 95 % interval."""
        return None if self.pooled_error is None else 1.96 * self.pooled_error


def bound(log: RunHistory) -> Bound:
    """Whether the run was bound by data, by computing, by other ranks or by evaluations.

    The first step, which waits for the pipeline to fill, is left out if there are others.
    """
    steps = log.step_count - 1 if log.step_count > 1 else log.step_count
    return bound_of(time_by_phase(log), steps=steps, communication_in_pauses=log.pauses.get("communication", 0.0))


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


@dataclass(frozen=True, kw_only=True)
class HorizonSummary:
    """α* of many steps as a whole, over the later half of its measurements."""

    measurements: int
    """With a number, over the whole run."""
    longest: int
    """Most steps that one of them was of."""
    pooled: float
    """−Σ dᵀg / Σ dᵀGd."""
    lower: float
    upper: float
    """Quartiles of the single measurements."""


def horizon_summary(log: RunHistory) -> HorizonSummary | None:
    """None of a run that measured single steps alone, or again after it had measured many."""
    measured = np.isfinite(log.horizon["relative"])
    single = log.alpha["last_step"][log.measured].max(initial=-1)
    if not measured.any() or log.horizon["step"][measured].max() < single:
        return None
    table = {name: column[measured] for name, column in log.horizon.items()}
    later = slice(int(measured.sum()) // 2, None)
    lower, upper = np.quantile(table["relative"][later], [0.25, 0.75])
    return HorizonSummary(
        measurements=int(measured.sum()),
        longest=int(table["horizon"].max()),
        pooled=float(-table["slope"][later].sum() / table["curvature"][later].sum()),
        lower=float(lower),
        upper=float(upper),
    )


def alpha_bins(log: RunHistory) -> list[AlphaBin]:
    """The rate that α* suggests over stretches of the run; stretches with fewer than 3 estimates are left out.

    None at all from fewer than `LEAST_ESTIMATES` estimates.

    Estimates taken in bursts are kept together by burst, others are cut into stretches of equally many steps.
    """
    chosen = (log.alpha["measured"] > 0) & (np.isfinite(log.alpha["absolute"]) | (log.alpha["estimates"] > 1))
    table = {name: column[chosen] for name, column in log.alpha.items()}
    count = int(chosen.sum())
    if table["measured"].sum() < LEAST_ESTIMATES:
        return []
    gaps = measuring_gaps(table["step"].tolist(), table["last_step"].tolist())
    cuts = _burst_cuts(table["step"], table["last_step"])
    if cuts is None:
        step = table["step"]
        edges = np.linspace(step[0], table["last_step"][-1] + 1, max(1, min(BINS, count // BIN_ESTIMATES)) + 1)
        cuts = np.searchsorted(step, edges)
    cuts = np.union1d(cuts, np.array(gaps, dtype=np.int64))
    bins, stops = [], [0]
    for start, stop in itertools.pairwise(cuts.tolist()):
        if np.isfinite(table["absolute"][start:stop]).any() and table["measured"][start:stop].sum() >= 3:
            paused = len(bins) > 0 and any(stops[-1] <= gap <= start for gap in gaps)
            bins.append(_bin({name: column[start:stop] for name, column in table.items()}, after_gap=paused))
            stops.append(stop)
    return bins


def _burst_cuts(step: Column, last: Column) -> NDArray[np.int64] | None:
    """Where each burst of estimates begins, and the end of the last; None if they do not come in bursts.

    A long burst is cut into pieces, and neighbors are joined until there are at most `BINS`.
    """
    gaps = step[1:] - last[:-1]
    if len(gaps) == 0:
        return None
    bursts = np.split(np.arange(len(step)), np.flatnonzero(gaps > 4 * np.median(gaps)) + 1)
    if len(bursts) < 3 or len(step) < 4 * len(bursts):
        return None
    pieces = [np.array_split(burst, max(1, len(burst) // BIN_ESTIMATES)) for burst in bursts]
    starts = np.array([piece[0] for burst in pieces for piece in burst])
    return np.append(starts[:: -(-len(starts) // BINS)], len(step))


def _bin(table: dict[str, Column], *, after_gap: bool) -> AlphaBin:
    weights = table["measured"]
    lower, median, upper = quantiles(table["absolute"], [0.25, 0.5, 0.75], weights)
    alone = table["estimates"] == 1
    slope, curvature = table["per_rate"].sum(axis=0)
    return AlphaBin(
        first_step=int(table["step"][0]),
        last_step=int(table["last_step"][-1]),
        estimates=int(weights.sum()),
        negative=int(np.where(alone, table["absolute"] < 0, table["negative"]).sum()),
        lower=float(lower),
        median=float(median),
        upper=float(upper),
        pooled=float(-slope / curvature) if curvature > 0 else None,
        learning_rate=float(quantiles(table["learning_rate"], [0.5], weights)[0]),
        after_gap=after_gap,
    )


def rate_summary(log: RunHistory) -> RateSummary | None:
    """What α* says of the applied rate over the whole run; None from fewer than `LEAST_ESTIMATES` finite estimates."""
    measured = log.alpha["measured"]
    if measured.sum() < LEAST_ESTIMATES or not log.measured.any():
        return None
    lower, median, upper = quantiles(log.alpha["relative"], [0.25, 0.5, 0.75], measured)
    count, slope, curvature, *squares = log.alpha["pairs"].sum(axis=0).tolist()
    sums = RatioSums(decay=1.0)
    sums.load_state_dict({"decay": 1.0, "sums": [count, slope, curvature, count, *squares]})
    pooled = sums.pooled()
    return RateSummary(
        estimates=int(measured.sum()),
        negative=int(log.alpha["negative"].sum()),
        lower=float(lower),
        median=float(median),
        upper=float(upper),
        pooled=pooled.rate if pooled and pooled.borne else None,
        pooled_error=pooled.standard_error if pooled and pooled.borne else None,
    )


def best_of_split(log: RunHistory, split: str = "validation") -> dict[str, float] | None:
    """The evaluation of `split` with the lowest loss; None without a finite one."""
    table = log.evaluations.get(split)
    index = None if table is None else lowest_loss(table)
    return None if table is None or index is None else {name: float(column[index]) for name, column in table.items()}


def evaluation_at(log: RunHistory, split: str, step: float) -> dict[str, float] | None:
    """The evaluation of `split` after exactly `step` steps; None without one."""
    table = log.evaluations.get(split)
    if table is None or step not in table["step"]:
        return None
    index = int(np.flatnonzero(table["step"] == step)[0])
    return {name: float(column[index]) for name, column in table.items()}


def quantiles(values: Column, shares: Sequence[float], counts: Column) -> Column:
    """Quantiles of a sample that has each of `values` as often as `counts` says; NaN ignored.

    Between two neighbors of the sample they are interpolated linearly, as numpy's are.
    """
    finite = np.isfinite(values)
    values, counts = values[finite], counts[finite]
    if (counts == 1).all():
        return np.quantile(values, shares)
    order = np.argsort(values)
    values, behind = values[order], np.cumsum(counts[order])
    place = np.asarray(shares) * (behind[-1] - 1)
    below, above = (values[np.searchsorted(behind, edge, side="right")] for edge in (np.floor(place), np.ceil(place)))
    return below + (above - below) * (place - np.floor(place))


def bin_means(values: Column, bins: int, *, steps: Column | None = None, counts: Column | None = None) -> Column:
    """The mean of `values` over at most `bins` stretches of equally many steps, NaN ignored.

    A row stands for `steps` steps, by default one, and its value is the mean of `counts` numbers, by default as many.
    """
    steps = np.ones(len(values)) if steps is None else steps
    cuts, weights = _cuts(steps, bins), steps if counts is None else counts
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0.0) * weights, cuts)
    numbers = np.add.reduceat(finite * weights, cuts)
    return np.divide(sums, numbers, out=np.full(len(cuts), np.nan), where=numbers > 0)


def bin_sums(values: Column, bins: int, *, steps: Column | None = None) -> Column:
    """The sum of `values` over at most `bins` stretches of equally many steps (`steps` a row), NaN ignored."""
    return np.add.reduceat(np.nan_to_num(values), _cuts(np.ones(len(values)) if steps is None else steps, bins))


def _cuts(steps: Column, bins: int) -> NDArray[np.int64]:
    """Where each of at most `bins` stretches begins; rows stand for `steps` steps each."""
    total = int(steps.sum())
    edges = np.linspace(0, total, min(total, bins), endpoint=False).astype(np.int64)
    cuts = np.unique(np.searchsorted(np.cumsum(steps) - steps, edges))
    return cuts[cuts < len(steps)]


def centered_mean(values: Column, half: int, *, steps: Column | None = None, counts: Column | None = None) -> Column:
    """The mean of `values` over the rows of `half` steps on either side (fewer at the ends), NaN ignored.

    `steps` and `counts` as for `bin_means`.
    """
    steps = np.ones(len(values)) if steps is None else steps
    weights = steps if counts is None else counts
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0) * weights)])
    numbers = np.concatenate([[0.0], np.cumsum(finite * weights)])
    behind = np.cumsum(steps)
    begins = behind - steps
    low, high = np.searchsorted(begins, begins - half), np.searchsorted(begins, behind + half)
    number = numbers[high] - numbers[low]
    return np.divide(sums[high] - sums[low], number, out=np.full(len(values), np.nan), where=number > 0)
