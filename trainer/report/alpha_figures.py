"""The pictures of a run's estimates of α*: what came of them, how they spread, and how the estimators differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ops.live import LEAST_ESTIMATES, measuring_gaps
from trainer.records import RunHistory
from trainer.report.plotting import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    MOST_RELATIVE,
    ORANGE,
    PINK,
    legend,
    new_figure,
    signed_log,
    style,
)
from trainer.report.summary import quantiles, rate_summary


def alpha_figure(log: RunHistory) -> Figure:
    """What came of the estimates of α*, and how the finite ones are spread."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    counts_axes, spread = figure.subplots(1, 2, width_ratios=(2, 3))
    counts = Counter(log.outcomes)
    names = [name for name, _ in reversed(counts.most_common())]
    total = counts.total()
    style(counts_axes, f"Outcomes of {total:,} estimate{'' if total == 1 else 's'}", "")
    colors = {"ok": GREEN, "ascent": AMBER}
    counts_axes.barh(names, [counts[name] for name in names], color=[colors.get(name, GREY) for name in names])
    for index, name in enumerate(names):
        text = f" {counts[name]:,} ({100 * counts[name] / total:.1f} %)"
        counts_axes.text(counts[name], index, text, va="center", fontsize=9, color=INK)
    counts_axes.set_xlim(0, max(counts.values()) * 1.6)
    counts_axes.set_xlabel("estimates")
    counts_axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    counts_axes.grid(visible=False, axis="y")
    counts_axes.tick_params(axis="y", length=0)
    _spread(spread, log)
    return figure


def bias_figure(log: RunHistory) -> Figure:
    """The estimators side by side: from one batch (biased), from two (unbiased), and from a mix (hybrid)."""
    figure, axes = new_figure("Biased against unbiased α*", "α* (times the applied step)")
    colors = {"relative": BLUE, "hybrid": PINK, "biased": ORANGE}
    names = {"relative": "unbiased (both from B1)", "hybrid": "hybrid (slope from B1)"}
    values = []
    for column, color in colors.items():
        if column not in log.alpha:
            continue
        chosen = np.isfinite(log.alpha[column])
        step, value = log.alpha["step"][chosen], log.alpha[column][chosen]
        axes.plot(step, value, ".", color=color, alpha=0.15, markersize=4, markeredgewidth=0)
        smooth = _running_median(value, max(3, len(value) // 20))
        gaps = measuring_gaps(step.tolist(), log.alpha["last_step"][chosen].tolist())
        line = np.insert(step, gaps, np.nan), np.insert(smooth, gaps, np.nan)
        axes.plot(*line, color=color, linewidth=2, label=names.get(column, "biased (both from B2)"))
        values.append(value)
    signed_log(axes, np.concatenate(values), edge=1.0)
    axes.axhline(1, color=INK, linewidth=1, linestyle=":", label="1: the step was just right")
    legend(axes, columns=4)
    return figure


def horizon_figure(log: RunHistory) -> Figure:
    """α* of many steps as a whole along the run, with its error bars."""
    figure, axes = new_figure("α* of the latest steps as a whole", "α* (times their sum)")
    step, value, error = (log.horizon[name] for name in ("step", "relative", "standard_error"))
    low, high = np.nanquantile(value, [0.02, 0.98])
    axes.errorbar(
        step, value, yerr=1.96 * np.nan_to_num(error), fmt="o", color=BLUE, ecolor=GREY, markersize=3, elinewidth=0.8
    )
    axes.set_ylim(min(0.0, low - 0.3), max(1.2, high + 0.3))
    axes.axhline(0.5, color=INK, linewidth=1.2, linestyle="--", label="½: they gained nothing")
    axes.axhline(1.0, color=INK, linewidth=1.2, linestyle=":", label="1: they landed at the minimum along their sum")
    legend(axes, columns=2)
    return figure


def _spread(axes: Axes, log: RunHistory) -> None:
    relative = log.alpha["relative"][log.measured]
    style(axes, "Spread of single estimates of α*", "estimates")
    weights = log.alpha["measured"][log.measured]
    measured = int(log.alpha["measured"].sum())
    if measured < LEAST_ESTIMATES:
        text = f"{measured} estimates carried a number;\na spread takes {LEAST_ESTIMATES}"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
        return
    # A step at a rate near zero can have an α* of 10¹³; the outermost bars hold everything beyond the axis.
    reach = math.ceil(math.log10(min(max(float(quantiles(np.abs(relative), [0.98], weights)[0]), 10.0), MOST_RELATIVE)))
    positive = 10 ** np.linspace(-1, reach, (20 if reach == 1 else 10) * (reach + 1) // 2 + 1)
    inner = np.linspace(-0.1, 0.1, 5)[1:-1]
    edges = np.concatenate([-positive[::-1], inner, positive])
    counts, _ = np.histogram(np.clip(relative, edges[0], edges[-1]), edges, weights=weights)
    # Bars stand on the index of their bin, which is what a signed logarithmic axis would show.
    place = np.arange(len(counts))
    colors = [GREEN if right > 0 else AMBER for right in edges[1:]]
    axes.bar(place + 0.5, counts, width=1.0, color=colors, edgecolor="white", linewidth=0.4)
    at: Callable[[float], float] = lambda value: float(np.interp(value, edges, np.arange(len(edges))))  # noqa: E731
    powers = [10.0**power for power in range(reach + 1)]
    ticks = [*(-power for power in reversed(powers)), 0.0, *powers]
    axes.set_xticks([at(tick) for tick in ticks], [_power(tick) for tick in ticks])
    summary = rate_summary(log)
    axes.axvline(at(1.0), color=INK, linewidth=1.2, linestyle=":")
    pooled = None if summary is None else summary.pooled
    if pooled is not None:
        axes.axvline(at(pooled), color=BLUE, linewidth=2)
    axes.set_xlabel("α* (1: the step was just right)")
    negative = int(log.alpha["negative"].sum())
    axes.figure.legend(
        handles=[
            *([] if pooled is None else [Line2D([], [], color=BLUE, linewidth=2, label=f"pooled {pooled:.3g}")]),
            Line2D([], [], color=INK, linewidth=1.2, linestyle=":", label="1"),
            Patch(color=GREEN, label="positive"),
            Patch(color=AMBER, label=f"negative ({100 * negative / measured:.0f} %)"),
        ],
        loc="outside lower right",
        ncols=4,
        frameon=False,
        fontsize=9,
    )


def _power(value: float) -> str:
    """A power of ten, short enough for an axis of many."""
    return f"{value:g}" if abs(value) <= 100 else rf"${'-' if value < 0 else ''}10^{{{math.log10(abs(value)):.0f}}}$"


def _running_median(values: np.ndarray, half: int) -> np.ndarray:
    padded = np.pad(values, half, mode="reflect" if len(values) > half else "edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)
