"""The pictures of a run's loss, learning rate and time, and the list of all that a report shows."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from trainer.records import RunHistory
from trainer.report.alpha_figures import alpha_figure, bias_figure, horizon_figure
from trainer.report.plotting import (
    AMBER,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    VIOLET,
    WINE,
    legend,
    new_figure,
    signed_log,
    step_axis,
    style,
)
from trainer.report.summary import (
    alpha_bins,
    best_of_split,
    bin_means,
    bin_sums,
    bound,
    centered_mean,
    time_by_phase,
)

SPLIT_COLORS = {"train": AMBER, "validation": ORANGE, "test": GREEN}
PHASE_COLORS = {
    "data_wait": ORANGE,
    "transfer": AMBER,
    "forward": SKY,
    "backward": BLUE,
    "optimizer": GREEN,
    "alpha": PINK,
    "communication": WINE,
    "evaluation": VIOLET,
    "checkpoint": BROWN,
    "other": GREY,
}
POINTS = 1200
"""No curve has more points than a screen can show."""
STRETCHES = 120
LARGEST_RATE_RATIO = 1e4
"""How far below the highest rate the frame reaches: a warm-up begins at nearly nothing, and a cosine ends there."""


def figures(log: RunHistory) -> dict[str, Figure]:
    """Every figure that the run has data for, by file stem, in the order of the report."""
    drawn = {"loss": loss_figure(log), "learning_rate": rate_figure(log), "time": time_figure(log)}
    if log.outcomes:
        drawn["alpha"] = alpha_figure(log)
    if any(variant in log.alpha for variant in ("biased", "hybrid")):
        drawn["bias"] = bias_figure(log)
    if np.isfinite(log.horizon["relative"]).any():
        drawn["horizon"] = horizon_figure(log)
    return drawn


def loss_figure(log: RunHistory) -> Figure:
    """Training loss, raw and smoothed, with the evaluations of every split."""
    figure, axes = new_figure("Loss", "mean binary cross-entropy (nats)")
    steps, finite, loss = log.steps["steps"], log.steps["finite_losses"], log.steps["loss"]
    half = max(1, log.step_count // 80)
    smooth = centered_mean(loss, half, steps=steps, counts=finite)
    step, raw = _along(log, log.middle), bin_means(loss, POINTS, steps=steps, counts=finite)
    axes.plot(step, raw, color=GREY, linewidth=0.8, alpha=0.6, label="training, each step")
    axes.plot(step, _along(log, smooth), color=BLUE, linewidth=2, label=f"training, mean of {2 * half + 1} steps")
    for split, table in log.evaluations.items():
        color = SPLIT_COLORS.get(split, INK)
        axes.plot(table["step"], table["loss"], color=color, marker="o", markersize=4, linewidth=1.4, label=split)
    best = best_of_split(log)
    if best is not None:
        label = f"best validation: {best['loss']:.5g} at step {best['step']:,.0f}"
        axes.plot(
            best["step"], best["loss"], "*", color=ORANGE, markeredgecolor="white", markersize=16, zorder=5, label=label
        )
    _loss_limits(axes, log, smooth)
    _epochs(axes, log)
    legend(axes)
    return figure


def rate_figure(log: RunHistory) -> Figure:
    """The learning rate that was applied against the one that α* suggests, and how often α* was negative."""
    bins = alpha_bins(log)
    if not bins:
        figure, axes = new_figure("Learning rate applied", "learning rate")
        _applied(axes, log)
        rates = log.steps["learning_rate"]
        if (rates > 0).all():
            axes.set_yscale("log")
            axes.set_ylim(bottom=max(float(rates.min()) / 2, float(rates.max()) / LARGEST_RATE_RATIO))
        legend(axes)
        return figure
    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    style(axes, "Learning rate applied, and the rate that α* suggests", "learning rate")
    middle = [one.middle for one in bins]
    lower, upper = [one.lower for one in bins], [one.upper for one in bins]
    pooled = [math.nan if one.pooled is None else one.pooled for one in bins]
    # A point without a value before the first bin after a pause: no line, and no band, runs across it.
    broken = np.array([index for index, one in enumerate(bins) if one.after_gap], dtype=np.int64)
    place, low, high, suggested = (np.insert(np.array(v), broken, np.nan) for v in (middle, lower, upper, pooled))
    label = "middle half of single estimates"
    axes.fill_between(place, low, high, color=BLUE, alpha=0.18, linewidth=0, label=label)
    # A band over a single bin has no width.
    starts = [*(one.after_gap for one in bins), True]
    alone = [i for i in range(len(bins)) if (i == 0 or starts[i]) and starts[i + 1]]
    sides = [[values[i] for i in alone] for values in (middle, lower, upper)]
    axes.vlines(*sides, color=BLUE, alpha=0.3, linewidth=5)
    dots = "o" if len(bins) <= 25 or len(broken) else ""
    label = "suggested by α* (pooled)"
    axes.plot(place, suggested, color=BLUE, linewidth=1.8, marker=dots, markersize=4, label=label)
    _applied(axes, log)
    _rate_scale(axes, log, [*lower, *upper])
    legend(axes)
    style(below, "", "negative α*")
    width = min(np.diff(middle), default=bins[0].last_step - bins[0].first_step + 1) * 0.9
    below.bar(middle, [one.negative / one.estimates for one in bins], width=width, color=GREY)
    below.set_ylim(0, 1)
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.yaxis.set_major_locator(MaxNLocator(2))
    step_axis(below)
    first, last = log.steps["step"][0], log.steps["last_step"][-1]
    room = 0.015 * max(last - first, 1)
    axes.set_xlim(first - room, last + room)
    return figure


def time_figure(log: RunHistory) -> Figure:
    """Where the time went: the phases of the steps along the run, and their share of all of it."""
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2), height_ratios=(8, 1))
    along, total = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    verdict = bound(log)
    figure.suptitle(str(verdict)[:1].upper() + str(verdict)[1:], fontsize=13, fontweight="bold", color=INK)
    names = [name for name in PHASE_COLORS if name in log.phases]
    apart = 1 if len(log.steps["step"]) > 1 else 0
    steps = log.steps["steps"][apart:]
    if apart:
        _first_step(figure.add_subplot(grid[1, :]), {name: float(log.phases[name][0]) for name in names})
    sums = np.array([bin_sums(log.phases[name][apart:], STRETCHES, steps=steps) for name in names])
    middle = bin_means(log.middle[apart:], STRETCHES, steps=steps)
    style(along, "Time of a step by phase, along the run", "share of wall time")
    if names:
        shares = sums / np.maximum(sums.sum(axis=0), 1e-300)
        along.stackplot(middle, shares, colors=[PHASE_COLORS[name] for name in names], linewidth=0)
        along.set_ylim(0, 1)
        if len(middle) > 1:
            along.set_xlim(middle[0], middle[-1])
    along.yaxis.set_major_formatter(PercentFormatter(1.0))
    along.grid(visible=False)
    step_axis(along)

    totals = time_by_phase(log)
    shown = sorted(totals, key=lambda name: totals[name])
    spent = sum(totals.values())
    style(total, "In all, pauses included", "")
    total.barh(_words(shown), [totals[name] for name in shown], color=[PHASE_COLORS.get(name, GREY) for name in shown])
    for index, name in enumerate(shown):
        text = f" {_duration(totals[name])}, {100 * totals[name] / spent:.1f} %"
        total.text(totals[name], index, text, va="center", fontsize=9, color=INK)
    total.set_xlim(0, max(totals.values(), default=1.0) * 1.55)
    total.set_xlabel("seconds")
    total.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value:,.0f}"))
    total.xaxis.set_major_locator(MaxNLocator(4))
    total.grid(visible=False, axis="y")
    total.tick_params(axis="y", length=0)
    return figure


def _first_step(axes: Axes, phases: dict[str, float]) -> None:
    """The first step's phases in a bar of its own: it waits for the pipeline to fill and for compilation."""
    seconds = np.nan_to_num(np.array(list(phases.values())))
    left = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    waiting = float(np.nan_to_num(phases.get("data_wait", 0.0)))
    style(axes, f"The first step, apart: {_duration(seconds.sum())}, {_duration(waiting)} waiting for data", "")
    axes.barh(["first step"] * len(seconds), seconds, left=left, color=[PHASE_COLORS[name] for name in phases])
    axes.set_yticks([])
    axes.set_xlabel("seconds")
    axes.grid(visible=False, axis="y")


def _along(log: RunHistory, values: np.ndarray) -> np.ndarray:
    """A curve over the steps, of no more points than can be shown."""
    return bin_means(values, POINTS, steps=log.steps["steps"])


def _loss_limits(axes: Axes, log: RunHistory, smooth: np.ndarray) -> None:
    """Frame the curve, not its first steps: those may start far above."""
    steps = log.steps["steps"]
    settled = np.searchsorted(np.cumsum(steps) - steps, log.step_count // 50)
    losses = [smooth[settled:], *(table["loss"] for table in log.evaluations.values())]
    shown = np.concatenate(losses)
    shown = shown[np.isfinite(shown)]
    if len(shown) == 0:
        return
    low, high = float(shown.min()), float(shown.max())
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
        return
    room = 0.12 * (high - low) or 0.01
    axes.set_ylim(low - room, high + room)
    top = float(np.nanmax(smooth, initial=-math.inf))
    if top > high + room:
        text = f"starts above the frame, at {top:.4g}"
        axes.text(0.99, 0.97, text, transform=axes.transAxes, va="top", ha="right", fontsize=9)


def _epochs(axes: Axes, log: RunHistory) -> None:
    starts = log.steps["step"][1:][np.diff(log.steps["epoch"]) > 0]
    if 0 < len(starts) <= 20:
        for start in starts:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
        axes.plot([], [], color=GREY, linewidth=0.8, linestyle=":", label="start of an epoch")


def _applied(axes: Axes, log: RunHistory) -> None:
    axes.plot(
        _along(log, log.middle), _along(log, log.steps["learning_rate"]), color=ORANGE, linewidth=2, label="applied"
    )


def _rate_scale(axes: Axes, log: RunHistory, alphas: list[float]) -> None:
    rates = log.steps["learning_rate"]
    rates = rates[np.isfinite(rates) & (rates > 0)]
    typical = float(np.median(rates)) if len(rates) else float(np.median(np.abs(alphas)))
    values = np.concatenate([np.asarray(alphas), [rates.max()] if len(rates) else []])
    signed_log(axes, values, edge=10 ** math.floor(math.log10(typical)))


def _words(names: list[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _duration(seconds: float) -> str:
    return EngFormatter(unit="s", places=1)(seconds) if seconds < 1 else f"{seconds:,.1f} s"
