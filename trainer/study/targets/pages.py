"""What a study's report says of its targets: sentences, tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report import GREY, INK, Table, duration, style
from trainer.study.results import Result, cells
from trainer.study.targets.arrivals import CellArrivals, LossCurve, Target, cell_arrivals, curves_of, targets_of
from trainer.study.targets.config import TargetSplit

if TYPE_CHECKING:
    from trainer.study.definition import Study

CAPTION = (
    "Loss over the time in training, every run of each arm's best cell; the target is the horizontal line, and a dot "
    "the evaluation that first reached it. The time counts no evaluation, no checkpoint and no start, as AlgoPerf's "
    "does not; it includes waiting for data and measuring α*."
)
HERE = "here"
"""In place of a machine, for our own runs."""


@dataclass(frozen=True, kw_only=True)
class TargetPages:
    """The parts of a report on targets; nothing of a study without any."""

    study: Study
    arrivals: Sequence[CellArrivals]
    curves: Mapping[str, Mapping[str, LossCurve]]
    """By name of the run, and split."""
    colors: Mapping[str, str]
    """One an arm."""

    @classmethod
    def of(cls, study: Study, out: Path, results: Sequence[Result], *, colors: Mapping[str, str]) -> TargetPages:
        """Of the runs in `out`/runs, as far as they are."""
        targets = targets_of(study, results)
        curves = {run.name: curves_of(out / run.path) for run in study.runs} if targets else {}
        arrivals = cell_arrivals(cells(study, results), targets, curves) if targets else []
        return cls(study=study, arrivals=arrivals, curves=curves, colors=colors)

    @property
    def targets(self) -> list[Target]:
        return list({one.target.split: one.target for one in self.arrivals}.values())

    def sentences(self) -> Iterator[str]:
        """What the targets are, and when the best cell of each arm reaches them."""
        config = self.study.settings.targets
        if config is None:
            return
        if not self.arrivals:
            yield f"No targets yet: they are the losses of {config.baseline}, no cell of which has finished."
            return
        losses = " and ".join(f"{target.split} loss {target.loss:.6f}" for target in self.targets)
        if config.baseline is None:
            yield f"To be reached: {losses}."
        else:
            preliminary = "" if all(target.final for target in self.targets) else ", which may change while it runs"
            yield f"To be reached: {losses}, those of {config.baseline} itself{preliminary}."
        for arm in self.study.varied:
            mine = [one for one in self.arrivals if one.cell.arm == arm and one.cell.best_of_arm and one.arrivals]
            if mine:
                name = f"{arm} {mine[0].cell.cell}".strip()
                yield f"{name}: " + "; ".join(f"{one.target.split} target {_in_words(one)}" for one in mine) + "."

    def tables(self) -> list[Table]:
        """Cell by cell, run by run, and beside what was published; those of them that have rows."""
        found = [self._cell_table(), self._run_table(), self._published_table()]
        return [table for table in found if table.rows]

    def _cell_table(self) -> Table:
        """Medians over seeds; the single runs are in the next table."""
        first = self._first
        columns = (
            *("arm", "cell", "split", "target", "runs", "reached", "median_steps", "median_seconds"),
            *(f"steps_over_{first}", f"seconds_over_{first}"),
        )
        rows = [
            (
                one.cell.arm,
                one.cell.cell,
                one.target.split,
                one.target.loss,
                len(one.arrivals),
                one.arrived,
                one.steps,
                one.seconds,
                _ratio(one.steps, self._of_first(one.target.split, "steps")),
                _ratio(one.seconds, self._of_first(one.target.split, "seconds")),
            )
            for one in self.arrivals
        ]
        title = f"When the targets are reached, and how much later than by the best cell of {first}"
        return Table(stem="targets", title=title, columns=columns, rows=rows)

    def _run_table(self) -> Table:
        columns = ("arm", "cell", "seed", "split", "target", "steps", "seconds", "share_of_budget", "loss", "best_loss")
        rows = [
            (
                one.run.arm,
                one.run.cell,
                str(one.run.seed),
                one.target.split,
                one.target.loss,
                one.steps,
                one.seconds,
                _ratio(one.seconds, one.run.config.budget.seconds or math.nan),
                one.loss,
                _lowest(self.curves[one.run.name].get(one.target.split)),
            )
            for cell in self.arrivals
            for one in cell.arrivals
        ]
        return Table(
            stem="arrivals", title="The evaluation at which each run reaches a target", columns=columns, rows=rows
        )

    def _published_table(self) -> Table:
        """Published medians beside the best cell of every arm here; nothing where nothing is published."""
        config = self.study.settings.targets
        published = () if config is None else config.published
        arms = list(self.study.varied)
        theirs = [
            (
                one.arm,
                one.machine,
                one.split,
                one.seconds,
                _range(one.steps),
                _range(one.rows_per_second),
                _ratio(one.seconds, next(first.seconds for first in published if first.beside(one))),
            )
            for one in published
        ]
        ours = [
            (
                one.cell.arm,
                HERE,
                one.target.split,
                one.seconds,
                one.steps,
                one.rows_per_second,
                _ratio(one.seconds, self._of_first(one.target.split, "seconds")),
            )
            for one in self.arrivals
            if one.cell.best_of_arm
        ]
        columns = ("arm", "where", "split", "median_seconds", "steps", "rows_per_second", "seconds_over_first_arm")
        title = "Published times to a target, and ours (published steps follow from their rows/s)"
        rows = sorted([*theirs, *ours], key=lambda row: arms.index(row[0])) if theirs else []
        return Table(stem="published", title=title, columns=columns, rows=rows)

    @property
    def _first(self) -> str:
        """The arm that the others are compared with: the one that sets the targets, or else the first."""
        config = self.study.settings.targets
        return (config and config.baseline) or self.study.settings.arm[0].name

    def _of_first(self, split: TargetSplit, number: str) -> float:
        """`number` of its best cell."""
        mine = (one for one in self.arrivals if one.cell.arm == self._first and one.cell.best_of_arm)
        return next((getattr(one, number) for one in mine if one.target.split == split), math.nan)

    def figures(self) -> Iterator[tuple[str, str, Figure]]:
        """Stem, caption and the picture, of a study with targets."""
        if self.arrivals:
            yield "targets", CAPTION, self._figure()

    def _figure(self) -> Figure:
        """A panel a target."""
        figure = Figure(figsize=(9.6, 1.2 + 3.4 * len(self.targets)), layout="constrained")
        panels = figure.subplots(len(self.targets), 1, squeeze=False)[:, 0]
        for axes, target in zip(panels, self.targets, strict=True):
            style(axes, f"{target.split.capitalize()} loss along the time in training", f"{target.split} loss")
            axes.axhline(target.loss, color=INK, linewidth=1.0, linestyle=":")
            shown: list[float] = [target.loss]
            for one in self.arrivals:
                if one.target is target and one.cell.best_of_arm:
                    shown += self._draw(axes, one)
            low, top = min(shown), max(shown)
            axes.set_ylim(low - 0.06 * (top - low), top + 0.06 * (top - low) + 1e-9)
            axes.set_xlabel("seconds of training")
            axes.legend(loc="upper right", frameon=False, fontsize=9)
        return figure

    def _draw(self, axes: Axes, one: CellArrivals) -> list[float]:
        """Every run's line; returns the losses that the frame should hold, which is the later half of each."""
        color, kept = self.colors.get(one.cell.arm, GREY), []
        label: str | None = f"{one.cell.arm} {one.cell.cell}".strip()
        for result in one.cell.results:
            curve = self.curves[result.run.name].get(one.target.split)
            if curve is None:
                continue
            axes.plot(curve.seconds, curve.losses, color=color, linewidth=1.4, alpha=0.8, label=label)
            label = None
            half = curve.losses[len(curve.losses) // 4 :]
            kept += [float(loss) for loss in half if math.isfinite(loss)]
        for each in one.arrivals:
            if each.arrived:
                axes.plot(each.seconds, each.loss, "o", color=color, markersize=6)
        return kept


def _in_words(one: CellArrivals) -> str:
    several = len(one.arrivals) > 1
    text = (
        f"reached by {one.arrived} of {len(one.arrivals)} runs"
        if several
        else f"{'' if one.arrived else 'not '}reached"
    )
    if not math.isfinite(one.steps):
        return text
    middle = ", the middle one" if several else ""
    return f"{text}{middle} after {one.steps:,.0f} steps and {duration(one.seconds)} of training"


def _ratio(value: float, over: float) -> float:
    """nan where one of the two is unknown or never; a ratio of never to something is never."""
    return value / over if math.isfinite(over) and over > 0 else math.nan


def _range(numbers: tuple[float, float] | None) -> float | str | None:
    """Two numbers as one text, or as one number if they are the same."""
    if numbers is None:
        return None
    low, high = numbers
    return low if low == high else f"{low:,.0f} to {high:,.0f}"


def _lowest(curve: LossCurve | None) -> float:
    return float(np.nanmin(curve.losses)) if curve is not None and np.isfinite(curve.losses).any() else math.nan
