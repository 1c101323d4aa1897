"""The pictures of a study: loss over the learning rate, heat maps, every cell, and what happened along training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report import (
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
    bin_means,
    legend,
    new_figure,
    step_axis,
    style,
)
from trainer.study.definition import Study
from trainer.study.grid import cell_name, short_names, value_text
from trainer.study.results import Cell

COLORS = (BLUE, ORANGE, GREEN, PINK, VIOLET, AMBER, SKY, BROWN)
LOSS = "validation loss (nats)"
RATE = "optimizer.lr"
CELLS_SHOWN = 40
LINES_SHOWN = 12
POINTS = 600


def losses_by_rate(study: Study, cells: Sequence[Cell]) -> Figure:
    """Best validation loss over the rate that was given: a line for every combination of the other varied keys.

    Of arms that do not vary the rate, the best cell is drawn as a level.
    """
    figure, axes = new_figure("Best validation loss over the given learning rate", LOSS)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate given (optimizer.lr)")
    low, top = _frame(_best_losses(cells))
    axes.set_ylim(low, top)
    for color, (name, line) in zip(_colors(), _lines(study, cells).items(), strict=False):
        if RATE in study.varied[line[0].arm]:
            _rate_line(axes, name, line, color, top)
        elif math.isfinite(line[0].best_loss.mean):
            axes.axhline(line[0].best_loss.mean, color=color, linewidth=1.6, linestyle="--", label=name)
    legend(axes)
    return figure


def _lines(study: Study, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells that differ in nothing but the rate, ascending in it, by what they share; else an arm's best cell."""
    short = short_names(list(study.keys))
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        if RATE not in study.varied[cell.arm] and not cell.best_of_arm:
            continue
        others = {short[key]: cell.values[key] for key in study.varied[cell.arm] if key != RATE}
        lines.setdefault(f"{cell.arm} {cell_name(others)}".strip(), []).append(cell)
    return {name: sorted(line, key=lambda cell: cell.values.get(RATE) or 0.0) for name, line in lines.items()}


def _rate_line(axes: Axes, name: str, line: list[Cell], color: str, top: float) -> None:
    rates = np.array([cell.values[RATE] for cell in line], dtype=np.float64)
    mean = np.array([cell.best_loss.mean for cell in line])
    sd = np.nan_to_num([cell.best_loss.sd for cell in line])
    axes.plot(rates, mean, color=color, linewidth=1.8, marker="o", markersize=4, label=name)
    axes.fill_between(rates, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
    for cell, rate in zip(line, rates, strict=True):
        for result in cell.results:
            if not result.outcome.final:
                continue
            if result.best_loss <= top:
                axes.plot(rate, result.best_loss, ".", color=color, alpha=0.5, markersize=6, markeredgewidth=0)
            else:
                axes.plot(rate, top, marker="^", color=color, markersize=7, clip_on=False)


def losses_by_cell(study: Study, cells: Sequence[Cell]) -> Figure:
    """Every run's best validation loss by cell, at most so many of the best cells."""
    ranked = sorted(
        (cell for cell in cells if math.isfinite(cell.best_loss.mean)), key=lambda cell: cell.best_loss.mean
    )
    chosen = {id(cell) for cell in ranked[:CELLS_SHOWN]}
    shown = [cell for cell in cells if id(cell) in chosen][::-1]
    figure = Figure(figsize=(9.6, 1.4 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    left_out = f", the best {len(shown)} of {len(ranked)}" if len(ranked) > len(shown) else ""
    style(axes, f"Best validation loss by cell{left_out}", "")
    colors = arm_colors(study)
    left, right = _frame(_best_losses(shown))
    axes.set_xlim(left, right)
    for place, cell in enumerate(shown):
        color = colors[cell.arm]
        losses = np.array([result.best_loss for result in cell.results])
        inside = losses <= right
        axes.plot(losses[inside], [place] * inside.sum(), "o", color=color, alpha=0.55, markersize=5, markeredgewidth=0)
        if (losses > right).any():
            axes.plot(right, place, ">", color=color, markersize=6, clip_on=False)
        axes.plot(cell.best_loss.mean, place, "|", color=color, markersize=15, markeredgewidth=2.4)
    axes.set_yticks(range(len(shown)), [f"{cell.arm} {cell.cell}".strip() for cell in shown], fontsize=9)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(LOSS)
    return figure


def heat_map(title: str, keys: Sequence[str], cells: Sequence[Cell], losses: Sequence[float]) -> Figure:
    """The cells' losses over two keys, the first along the rows, the second along the columns."""
    rows, columns = (_distinct(cells, key) for key in keys)
    table = np.full((len(rows), len(columns)), math.nan)
    for cell, loss in zip(cells, losses, strict=True):
        table[rows.index(cell.values[keys[0]]), columns.index(cell.values[keys[1]])] = loss
    figure = Figure(figsize=(max(5.6, 2.6 + 1.0 * len(columns)), max(3.0, 1.8 + 0.5 * len(rows))), layout="constrained")
    axes = figure.subplots()
    style(axes, title, keys[0])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    finite = table[np.isfinite(table)]
    low, top = (finite.min(), _top(finite)) if len(finite) else (0.0, 1.0)
    image = axes.imshow(table, cmap="viridis_r", aspect="auto", vmin=low, vmax=top)
    for (row, column), value in np.ndenumerate(table):
        text = f"{value:.5f}" if math.isfinite(value) else "–"
        dark = value > low + 0.45 * (top - low)
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    axes.set_xticks(range(len(columns)), [value_text(value) for value in columns])
    axes.set_yticks(range(len(rows)), [value_text(value) for value in rows])
    axes.set_xlabel(keys[1])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=f"best {LOSS}")
    return figure


def loss_along_training(study: Study, cells: Sequence[Cell]) -> Figure:
    """Validation loss along training, every seed of each arm's best cell."""
    figure, axes = new_figure("Validation loss along training, each arm's best cell", LOSS)
    for color, arm in zip(_colors(), study.varied, strict=False):
        best = next((cell for cell in cells if cell.arm == arm and cell.best_of_arm), None)
        for index, result in enumerate(best.results if best else ()):
            label = f"{arm} {best.cell}".strip() if best and index == 0 else None
            axes.plot(*result.evaluations, color=color, linewidth=1.5, alpha=1.0 if index == 0 else 0.4, label=label)
    curves = [result.evaluations[1] for cell in cells if cell.best_of_arm for result in cell.results]
    axes.set_ylim(*_frame(np.concatenate(curves or [np.zeros(0)])))
    legend(axes)
    return figure


def rates_along_training(study: Study, cells: Sequence[Cell]) -> Figure:
    """The applied rate over steps, a panel an arm, a line a cell; the best cells if there are many."""
    arms = list(study.varied)
    figure = Figure(figsize=(9.6, 1.0 + 3.0 * len(arms)), layout="constrained")
    panels = figure.subplots(len(arms), 1, squeeze=False)[:, 0]
    for axes, arm in zip(panels, arms, strict=True):
        mine = [cell for cell in cells if cell.arm == arm]
        ranked = sorted(mine, key=lambda cell: _nan_last(cell.best_loss.mean))[:LINES_SHOWN]
        mine = [cell for cell in mine if any(cell is one for one in ranked)]
        style(axes, f"{arm}: learning rate applied", "learning rate")
        step_axis(axes)
        for color, cell in zip(_colors(), mine, strict=False):
            step, rate = cell.results[0].rates
            if len(step):
                thin = bin_means(step, POINTS), bin_means(np.where(rate > 0, rate, np.nan), POINTS)
                axes.plot(*thin, color=color, linewidth=1.3, label=cell.cell or arm)
        axes.set_yscale("log")
        _rate_limits(axes, mine)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure


def _rate_limits(axes: Axes, cells: Sequence[Cell]) -> None:
    """Leaves out the lowest twentieth of every line: warm-up begins and cosine ends at nothing."""
    applied = [rate[np.isfinite(rate) & (rate > 0)] for rate in (cell.results[0].rates[1] for cell in cells)]
    applied = [rate for rate in applied if len(rate)]
    if applied:
        low = min(float(np.quantile(rate, 0.05)) for rate in applied)
        axes.set_ylim(low / 1.4, max(float(rate.max()) for rate in applied) * 1.4)


def _distinct(cells: Sequence[Cell], key: str) -> list[Any]:
    values = list(dict.fromkeys(cell.values[key] for cell in cells))
    return sorted(values) if all(isinstance(value, (int, float)) for value in values) else values


def _frame(losses: Iterable[float]) -> tuple[float, float]:
    """Limits that hold the losses, less those far beyond the rest."""
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    low, top = (float(finite.min()), _top(finite)) if len(finite) else (0.0, 1.0)
    room = 0.06 * (top - low) or 0.001
    return low - room, top + room


def _top(losses: np.ndarray) -> float:
    """The highest loss; if that is far beyond the rest, three times as far above the lowest as the median."""
    low = float(losses.min())
    return min(float(losses.max()), low + max(3.0 * (float(np.median(losses)) - low), 1e-3))


def _best_losses(cells: Sequence[Cell]) -> list[float]:
    return [result.best_loss for cell in cells for result in cell.results if result.outcome.final]


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def arm_colors(study: Study) -> dict[str, str]:
    """One color an arm, the same in every picture of its best cells."""
    return dict(zip(study.varied, _colors(), strict=False))


def _colors() -> Iterator[str]:
    while True:
        yield from COLORS
        yield GREY
