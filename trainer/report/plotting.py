"""What all figures share: colors, frame, step axis, legend."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette, told apart with any kind of color vision.
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
AMBER, PINK, VIOLET, BROWN, GREY, INK = "#E69F00", "#CC79A7", "#7A5CC0", "#8C6D46", "#A3ABB4", "#16191D"
WINE = "#882255"
WIDE = (9.6, 4.8)
MOST_RELATIVE = 1e4
"""The largest multiple of its linear part that a signed logarithmic axis reaches for."""


def new_figure(title: str, ylabel: str) -> tuple[Figure, Axes]:
    """One wide axes over training steps."""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    style(axes, title, ylabel)
    step_axis(axes)
    return figure, axes


def style(axes: Axes, title: str, ylabel: str) -> None:
    """Title, label and the look that every axes has."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E2E5EA", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.015)


def step_axis(axes: Axes) -> None:
    """Whole steps along the bottom, thousands separated."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def legend(axes: Axes, columns: int = 3) -> None:
    """Below the axes, where it can never lie over data."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def signed_log(axes: Axes, values: np.ndarray, *, edge: float) -> None:
    """Logarithmic on both sides of zero and linear within ±`edge`; framed on the middle 98 % of `values`."""
    axes.set_yscale("symlog", linthresh=edge, linscale=0.7)
    low, high = np.clip(np.quantile(values, [0.01, 0.99]), -MOST_RELATIVE * edge, MOST_RELATIVE * edge)
    axes.set_ylim(min(1.4 * low, -0.1 * edge), max(1.4 * high, 1.5 * edge))
    axes.axhline(0, color=GREY, linewidth=1)
