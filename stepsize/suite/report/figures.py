"""The figures of a study: regret as a heat map, profile and bars, loss over the first guess, rates over the run."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsize.suite.methods import METHODS
from stepsize.suite.problems.rows import EXTRA, SuiteError
from stepsize.suite.report.scores import Entry, Scores, TaskScores, summarize_method
from stepsize.suite.report.tables import percent, profile
from stepsize.suite.store import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of color vision.
COLORS = {
    "auto": "#0072B2",
    "auto_single": "#56B4E9",
    "cosine": "#16191D",
    "constant+average": "#7A5CC0",
    "fixed": "#A3ABB4",
    "schedule-free": "#D55E00",
    "prodigy": "#009E73",
    "d-adaptation": "#E69F00",
    "dog": "#CC79A7",
}
MARKERS = "os^Dv<>PX"
CLIPPED = 0.3
"""Regrets beyond this have the deepest color of the heat map, and stand at the edge of other figures."""


def matplotlib_module() -> Any:
    """Matplotlib, drawing into files.

    Raises: SuiteError where it is not installed.
    """
    try:
        return import_module("matplotlib")
    except ImportError:
        raise SuiteError(f"figures need matplotlib; pip install {EXTRA}") from None


def new_suite_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that no display is needed for, and its axes row by row."""
    matplotlib_module()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    flat = [one for row in axes for one in row]
    for one in flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, color="#E2E5EA", linewidth=0.8)
        one.set_axisbelow(True)
    return figure, flat


def regret_heat_map(scores: Scores) -> Figure:
    """Tasks × methods and first guesses, regret in per cent; fitted tasks below the others."""
    tasks, entries = [*scores.reported, *scores.fitted], scores.entries
    figure, [axes] = new_suite_figure(2.8 + 0.78 * len(entries), 2.4 + 0.34 * len(tasks))
    values = [[task.scores[entry].regret for entry in entries] for task in tasks]
    shown = [[100 * value for value in several] for several in values]
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-100 * CLIPPED, vmax=100 * CLIPPED, aspect="auto")
    for row, several in enumerate(values):
        for column, value in enumerate(several):
            color = "white" if abs(value) > 0.7 * CLIPPED else "black"
            axes.text(column, row, percent(value), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(entries)), [entry.title for entry in entries], rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(tasks)), [_name(task) for task in tasks], fontsize=8)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, fraction=0.03)
    axes.set_title("Regret, per cent of the best tuned cosine's loss", loc="left", fontweight="bold")
    return figure


def _name(task: TaskScores) -> str:
    return f"{task.task.name} (fitted)" if task.task.fitted else task.task.name


def performance_profile(scores: Scores) -> Figure:
    """For each method the share of tasks in which its loss is within x per cent of the best method's."""
    figure, [axes] = new_suite_figure(8.4, 4.6)
    for marker, (name, distances) in zip(MARKERS, profile(scores.reported, scores.methods).items(), strict=False):
        shares = [(number + 1) / len(distances) for number in range(len(distances))]
        x = [0.0, *(100 * min(distance, CLIPPED) for distance in distances), 100 * CLIPPED]
        within = sum(distance <= CLIPPED for distance in distances) / len(distances)
        y = [0.0, *(min(share, within) for share in shares), within]
        style: dict[str, Any] = {"color": COLORS[name], "label": METHODS[name].title, "markevery": max(1, len(x) // 6)}
        axes.step(x, y, where="post", marker=marker, markersize=4, linewidth=2.4 if name == "auto" else 1.3, **style)
    axes.set_xlabel(f"per cent above the best method of the task (cut at {100 * CLIPPED:.0f})")
    axes.set_ylabel("share of tasks")
    axes.set_ylim(0, 1.02)
    axes.set_title("Performance profile", loc="left", fontweight="bold")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def mean_and_worst(scores: Scores) -> Figure:
    """Two bars a method: mean regret, and that of its worst task and first guess."""
    figure, [axes] = new_suite_figure(8.4, 1.2 + 0.5 * len(scores.methods))
    found = {name: summarize_method(scores.reported, name) for name in scores.methods}
    for row, (name, summary) in enumerate(found.items()):
        for offset, value, alpha in ((-0.2, summary.mean, 1.0), (0.2, summary.worst, 0.45)):
            axes.barh(row + offset, 100 * value, height=0.36, color=COLORS[name], alpha=alpha)
            axes.annotate(percent(value), (100 * value, row + offset), va="center", fontsize=8)
    axes.axvline(0, color="#16191D", linewidth=1)
    axes.set_xscale("symlog", linthresh=5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(found)), [METHODS[name].title for name in found])
    axes.invert_yaxis()
    axes.set_xlabel("regret, per cent: mean over tasks (solid), worst task and first guess (pale)")
    axes.set_title("Mean and worst", loc="left", fontweight="bold")
    return figure


def loss_over_guess(several: Sequence[TaskScores], title: str) -> Figure:
    """For each task the loss over the rate, or the first guess, that a method was given."""

    def draw(axes: Axes, found: TaskScores) -> None:
        for name, curve in found.curves.items():
            losses = [test for _, test in curve.values()]
            axes.plot(list(curve), losses, color=COLORS[name], marker=".", label=METHODS[name].title)
        for entry, score in found.scores.items():
            if METHODS[entry.method].kind == "peer":
                axes.axhline(score.loss, color=COLORS[entry.method], linewidth=1, linestyle=":", label=entry.title)
        for name in dict.fromkeys(entry.method for entry in found.scores):
            if METHODS[name].kind in ("measured", "fixed"):
                points = {score.rate: score.loss for score in found.of(name).values()}
                style: dict[str, Any] = {
                    "color": COLORS[name],
                    "markersize": 7,
                    "label": METHODS[name].title,
                    "zorder": 5,
                }
                axes.plot(list(points), list(points.values()), marker="D" if name == "auto" else "s", **style)
        lowest = min(score.loss for score in found.scores.values())
        highest = max(test for curve in found.curves.values() for _, test in curve.values())
        axes.set_ylim(lowest * 0.97, max(min(highest, lowest * 2.5), lowest * 1.1))
        axes.set_xscale("log")
        axes.set_ylabel("test loss", fontsize=8)

    return _small_multiples(several, title, "rate, or first guess", draw)


def rates_over_run(several: Sequence[TaskScores], title: str) -> Figure:
    """For each task the rates that measuring methods took, and the tuned cosine's."""

    def draw(axes: Axes, found: TaskScores) -> None:
        for entry, score in found.scores.items():
            if METHODS[entry.method].kind != "measured" and entry != Entry("cosine"):
                continue
            for number, run in enumerate(score.runs):
                points = [(step / found.task.steps, rate) for step, rate in run.record["rates"] if rate > 0]
                label = METHODS[entry.method].title if number == 0 else None
                style: dict[str, Any] = {"color": COLORS[entry.method], "linewidth": 1, "alpha": 0.6, "label": label}
                axes.plot([x for x, _ in points], [y for _, y in points], **style)
        axes.set_yscale("log")
        axes.set_ylabel("learning rate", fontsize=8)

    return _small_multiples(several, title, "share of the run", draw)


def _small_multiples(
    several: Sequence[TaskScores], title: str, xlabel: str, draw: Callable[[Axes, TaskScores], None]
) -> Figure:
    columns = min(3, len(several))
    rows = math.ceil(len(several) / columns)
    figure, axes = new_suite_figure(4.2 * columns, 2.9 * rows + 0.9, rows, columns)
    for one, found in zip(axes, several, strict=False):
        draw(one, found)
        one.set_title(_name(found), fontsize=9)
        one.set_xlabel(xlabel, fontsize=8)
        one.tick_params(labelsize=8)
    for one in axes[len(several) :]:
        one.set_visible(False)
    labels: dict[str, Any] = {}
    for one in axes[: len(several)]:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(title, fontweight="bold")
    return figure


def every_figure(scores: Scores) -> Iterator[tuple[str, str, Figure]]:
    """File name, what it shows, the figure; those that need reported tasks are left out where there are none."""
    if scores.done:
        yield (
            "regret.png",
            "Regret of every task and method, in per cent of the best tuned cosine's loss.",
            (regret_heat_map(scores)),
        )
    if scores.reported:
        yield "mean-and-worst.png", "Mean regret beside that of the worst task.", mean_and_worst(scores)
        yield (
            "profile.png",
            "Share of tasks in which a method is within x per cent of the best.",
            (performance_profile(scores)),
        )
    for group in dict.fromkeys(found.task.group for found in scores.done):
        several = [found for found in scores.done if found.task.group == group]
        name = group.replace(" ", "-")
        yield f"guess-{name}.png", f"Loss over the rate or the first guess: {group}.", loss_over_guess(several, group)
        if any(METHODS[method].kind == "measured" for method in scores.methods):
            yield (
                f"rates-{name}.png",
                f"Rates along the run, one line a seed: {group}.",
                (rates_over_run(several, group)),
            )


def write_figures(folder: Path, scores: Scores) -> list[tuple[str, str]]:
    """Draw all of them; returns file names and what they show."""
    written = []
    for name, shown, figure in every_figure(scores):
        drawing = io.BytesIO()
        figure.savefig(drawing, format="png", dpi=110, metadata={"Software": None})
        write_whole(folder / name, drawing.getvalue())
        written.append((name, shown))
    return written
