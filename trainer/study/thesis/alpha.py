"""What the estimates of α* along a run say together: statistics and pictures, as for studies/thesis-observe.toml."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.records import Column, read_records
from trainer.report import BLUE, GREY, INK, ORANGE, legend, new_figure, step_axis, style

NUMBERS = ("slope", "curvature", "relative", "absolute")
KINDS = ("unbiased", "biased", "hybrid")
SPREAD = ("mean", "median", "sd", "min", "max", "range", "sd_over_mean", "sd_over_range")


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """A run's estimates of α* that carry a number, without the first, at which the rate is close to zero."""

    step: Column
    learning_rate: Column
    kinds: Mapping[str, Mapping[str, Column]]
    """`NUMBERS` of unbiased, biased and hybrid estimates; those that were not asked for are left out."""
    cosines: Mapping[str, Column]
    """cos(g1, d) and cos(g2, d), if the run diagnosed them."""

    @classmethod
    def load(cls, run: Path) -> Estimates | None:
        """Of alpha.jsonl; None if it has none."""
        latest = {record["step"]: record for record in read_records(run / "alpha.jsonl")}
        records = [latest[step] for step in sorted(latest)[1:] if latest[step]["relative"] is not None]
        if not records:
            return None
        kinds = {
            kind: {name: _column([_numbers(record, kind) for record in records], name) for name in NUMBERS}
            for kind in KINDS
            if _numbers(records[0], kind)
        }
        diagnoses = [record.get("diagnostics") or {} for record in records]
        return cls(
            step=_column(records, "step"),
            learning_rate=_column(records, "learning_rate"),
            kinds=kinds,
            cosines={name: _column(diagnoses, name) for name in ("cosine_b1", "cosine_b2")} if any(diagnoses) else {},
        )

    def bursts(self, interval: int | None = None) -> list[slice]:
        """Estimates of consecutive steps, one slice a burst; all of them if there is one burst only.

        Steps of different intervals of `interval` steps are different bursts, also if every step is measured.
        """
        apart = np.diff(self.step) > 1
        if interval is not None:
            apart |= np.diff(self.step // interval) > 0
        cuts = np.flatnonzero(apart) + 1
        edges = [0, *cuts.tolist(), len(self.step)]
        return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _numbers(record: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return record if kind == "unbiased" else record.get(kind) or {}


def _column(records: Sequence[Mapping[str, Any]], name: str) -> Column:
    return np.array([math.nan if record.get(name) is None else record[name] for record in records], dtype=np.float64)


def statistics(estimates: Estimates) -> dict[str, float]:
    """Figures by name: spread of α* and of the rate that it suggests, share of negative ones, biased against unbiased.

    The decomposition is unbiased − biased = (hybrid − biased) + (unbiased − hybrid), the slope's and the
    curvature's share of the bias, all of α*.
    """
    figures: dict[str, float] = {"estimates": len(estimates.step)}
    for kind, numbers in estimates.kinds.items():
        if kind == "hybrid":
            continue
        for name in ("absolute", "relative"):
            figures |= {f"{kind}_{name}_{figure}": value for figure, value in spread_figures(numbers[name]).items()}
        absolute = numbers["absolute"]
        figures[f"{kind}_negative"] = int((absolute < 0).sum())
        figures[f"{kind}_negative_share"] = float((absolute < 0).mean())
    unbiased, biased, hybrid = (estimates.kinds.get(kind) for kind in KINDS)
    if unbiased and biased:
        for name in NUMBERS:
            figures[f"correlation_{name}"] = _correlation(biased[name], unbiased[name])
    if unbiased and biased and hybrid:
        of_slope, of_curvature = hybrid["relative"] - biased["relative"], unbiased["relative"] - hybrid["relative"]
        figures["hybrid_less_biased"] = float(np.nanmean(of_slope))
        figures["unbiased_less_hybrid"] = float(np.nanmean(of_curvature))
        figures["hybrid_less_biased_median"] = float(np.nanmedian(of_slope))
        figures["unbiased_less_hybrid_median"] = float(np.nanmedian(of_curvature))
    return figures | {f"{name}_mean": float(np.nanmean(column)) for name, column in estimates.cosines.items()}


def spread_figures(values: Column) -> dict[str, float]:
    """Mean, median, sd (of the sample), extremes and range, sd over mean (coefficient of variation) and over range."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return dict.fromkeys(SPREAD, math.nan)
    mean, sd = float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
    low, high = float(finite.min()), float(finite.max())
    shares = (sd / mean if mean else math.nan, sd / (high - low) if high > low else math.nan)
    return dict(zip(SPREAD, (mean, float(np.median(finite)), sd, low, high, high - low, *shares), strict=True))


def _correlation(x: Column, y: Column) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 2 or np.ptp(x[both]) == 0 or np.ptp(y[both]) == 0:
        return math.nan
    return float(np.corrcoef(x[both], y[both])[0, 1])


def burst_figure(estimates: Estimates, *, title: str, interval: int | None = None) -> Figure:
    """Means, medians and spread of α* by burst of measured steps: relative, absolute with the rate, and its parts."""
    figure = Figure(figsize=(9.6, 11.0), layout="constrained")
    relative, absolute, parts = figure.subplots(3, 1)
    bursts = estimates.bursts(interval)
    middle = np.array([estimates.step[burst].mean() for burst in bursts])
    colors = {"unbiased": BLUE, "biased": ORANGE}
    style(relative, f"{title}: mean α* by burst", "α*, times the applied step")
    style(absolute, "Learning rate that α* suggests, by burst, and the rate applied", "learning rate")
    style(parts, "Slope and curvature along the step, mean by burst", "loss per step")
    for kind, color in colors.items():
        numbers = estimates.kinds.get(kind)
        if numbers is None:
            continue
        by_burst = {name: [column[burst] for burst in bursts] for name, column in numbers.items()}
        relative.plot(middle, [np.nanmean(part) for part in by_burst["relative"]], color=color, marker=".", label=kind)
        mean = np.array([np.nanmean(part) for part in by_burst["absolute"]])
        sd = np.array([np.nanstd(part) for part in by_burst["absolute"]])
        median = [np.nanmedian(part) for part in by_burst["absolute"]]
        absolute.plot(middle, mean, color=color, marker=".", label=f"{kind}, mean ± sd")
        absolute.plot(middle, median, color=color, linestyle=":", label=f"{kind}, median")
        absolute.fill_between(middle, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
        slope = [abs(np.nanmean(part)) for part in by_burst["slope"]]
        curvature = [np.nanmean(part) for part in by_burst["curvature"]]
        parts.plot(middle, slope, color=color, marker=".", label=f"|dᵀg|, {kind}")
        parts.plot(middle, curvature, color=color, linestyle=":", label=f"dᵀGd, {kind}")
    relative.set_yscale("symlog", linthresh=1.0)
    relative.axhline(1.0, color=GREY, linewidth=1)
    rates = [np.nanmedian(estimates.learning_rate[burst]) for burst in bursts]
    absolute.plot(middle, rates, color=INK, linewidth=1.6, label="applied")
    absolute.set_yscale("symlog", linthresh=max(float(np.median(rates)), 1e-12), linscale=0.7)
    parts.set_yscale("log")
    for axes in (relative, absolute, parts):
        step_axis(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def decomposition_figure(estimates: Estimates, *, title: str, interval: int | None = None) -> Figure:
    """The two shares of unbiased − biased by burst: hybrid − biased (the slope's), unbiased − hybrid (the curvature's).

    Needs all three kinds of estimates.
    """
    unbiased, biased, hybrid = (estimates.kinds[kind]["relative"] for kind in KINDS)
    bursts = estimates.bursts(interval)
    middle = [estimates.step[burst].mean() for burst in bursts]
    figure, axes = new_figure(
        f"{title}: what makes biased estimates of α* too large", "difference of α*, mean by burst"
    )
    for name, difference, color in (
        ("hybrid − biased, the slope's share", hybrid - biased, ORANGE),
        ("unbiased − hybrid, the curvature's share", unbiased - hybrid, BLUE),
    ):
        by_burst = [float(np.nanmean(difference[burst])) for burst in bursts]
        mean = float(np.nanmean(difference))
        axes.plot(middle, by_burst, color=color, marker=".", label=f"{name} (mean {mean:.4g})")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.axhline(0.0, color=GREY, linewidth=1)
    legend(axes, 1)
    return figure
