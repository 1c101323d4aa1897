"""A study's results as tables, pictures and one page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from trainer.report import Table, duration, write_figure, write_page, write_table
from trainer.study.comparison import budgets_of, correlations
from trainer.study.definition import RESOLVED, Study, read_study
from trainer.study.figures import (
    arm_colors,
    heat_map,
    loss_along_training,
    losses_by_cell,
    losses_by_rate,
    rates_along_training,
)
from trainer.study.results import Cell, Result, RunOutcome, Spread, cells, collect, study_on_this_machine
from trainer.study.tables import (
    alpha_table,
    cell_table,
    correlation_table,
    readable,
    result_table,
    scaling_table,
)
from trainer.study.targets.pages import TargetPages
from trainer.study.thesis import Estimates, Section, burst_figure, thesis_section
from trainer.study.thesis.checklist import checklist

CAPTIONS = {
    "learning_rate": "Best validation loss over the learning rate that each run was given: lines are means over seeds, "
    "bands their standard deviation, dots single runs. Triangles at the top stand for runs beyond the frame.",
    "cells": "Best validation loss of every run, by cell; bars are means over seeds, dots are single runs.",
    "progress": "Validation loss along training, of each arm's best cell.",
    "alpha": "Estimates of α* from two batches (unbiased) and from the one that made the step (biased), by burst of "
    "measured steps.",
    "rates": "The learning rate that was applied, one line a cell (its first seed).",
}


def write_study_report(out: Path) -> Path:
    """Writes `out`/index.html with its PNGs and CSVs from `out`/runs as far as they are, and returns the page's path.

    Each file appears whole, and the page last of all; where one cannot be written, it is as it was.
    Raises: ConfigError if `out` holds no study; OSError if it cannot be written.
    """
    study = read_study(out / RESOLVED).unfold()
    study = study_on_this_machine(study, out) or study
    results = list(collect(study, out).values())
    section = thesis_section(study, results, out)
    reached = TargetPages.of(study, out, results, colors=arm_colors(study))
    pictures = []
    for stem, caption, figure in itertools.chain(
        section.pictures,
        reached.figures(),
        _figures(study, results),
        () if section.pictures else _alpha_figures(study, out),
    ):
        write_figure(out / f"{stem}.png", figure)
        pictures.append((stem, caption))
    tables = [part for table in _written(out, reached.tables()) for part in readable(table, 3)]
    tables += _page_tables(study, out, results, section, [stem for stem, _ in pictures])
    page = out / "index.html"
    said = [*sentences(study, results), *reached.sentences(), *section.said]
    write_page(page, title=str(out), said=said, pictures=pictures, tables=tables)
    return page


def _page_tables(
    study: Study, out: Path, results: Sequence[Result], section: Section, pictures: Sequence[str]
) -> list[Table]:
    """All tables, each written as a file in full, as the page shows them."""
    found = write_results(study, out, results)
    alpha = alpha_table(study, out)
    special = [table for table in (scaling_table(study), *section.tables) if table.rows]
    if study.settings.published:
        there = [*pictures, *(table.stem for table in (*special, *found))]
        if any(one.number == "steps" for one in correlations(study, results)):
            there.append("correlations_steps")
        special.insert(0, checklist(study.settings.published, there))
    _written(out, [*special, alpha])
    keys = {"summary": 1 + len(study.keys), "results": 2 + len(study.keys), "alpha": 1, "correlations": 3}
    wide = [*found, *([alpha] if alpha.rows else [])]
    return special + [part for table in wide for part in readable(table, keys[table.stem])]


def write_results(study: Study, out: Path, results: Sequence[Result]) -> list[Table]:
    """Writes summary.csv, correlations.csv (if there are any) and results.csv; returns them as tables."""
    grouped = cells(study, results)
    return _written(
        out,
        [
            cell_table(study, grouped),
            correlation_table(correlations(study, results)),
            result_table(study, results),
        ],
    )


def _written(out: Path, tables: Sequence[Table]) -> list[Table]:
    """Those that have rows, each written."""
    tables = [table for table in tables if table.rows]
    for table in tables:
        write_table(out / f"{table.stem}.csv", table)
    return tables


def sentences(study: Study, results: Sequence[Result]) -> list[str]:
    """What came of the study, in a few plain sentences."""
    grouped = cells(study, results)
    said = [study.settings.question] if study.settings.question else []
    said.append(_progress(results))
    damaged = [result for result in results if result.damaged_lines]
    if damaged:
        said.append(
            f"{sum(result.damaged_lines for result in damaged):,} lines of the records could not be read and were left "
            f"out, the first of them in {damaged[0].run.path}."
        )
    reference: Cell | None = None
    for arm in study.varied:
        mine = [cell for cell in grouped if cell.arm == arm and math.isfinite(cell.best_loss.mean)]
        best = next((cell for cell in mine if cell.best_of_arm), None)
        if best is None:
            continue
        text = f"{arm}: best validation loss {_spread(best)}"
        if len(mine) > 1:
            worst = max(cell.best_loss.mean for cell in mine)
            text += f" with {best.cell}; its cells range from {best.best_loss.mean:.5f} to {worst:.5f}"
        if reference is not None and best.difference.count:
            text += f". Against the best of {reference.arm}: {_difference(best)}"
            worst_cell = max(mine, key=lambda cell: cell.difference.mean)
            if worst_cell is not best:
                text += f"; at worst {_difference(worst_cell)}, with {worst_cell.cell}"
        said.append(text + ".")
        if arm == study.settings.arm[0].name:
            reference = best
    return said


def _progress(results: Sequence[Result]) -> str:
    counts = {outcome: sum(result.outcome is outcome for result in results) for outcome in RunOutcome}
    spent = sum(result.training_seconds for result in results)
    text = f"{counts[RunOutcome.FINISHED]:,} of {len(results):,} runs finished, in {duration(spent)} of training"
    others = [f"{counts[outcome]:,} {outcome}" for outcome in RunOutcome if outcome is not RunOutcome.FINISHED]
    others = [text for text in others if not text.startswith("0 ")]
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def _spread(cell: Cell) -> str:
    loss = cell.best_loss
    return f"{loss.mean:.5f}" + (
        f" ± {loss.sd:.5f} (standard deviation over {loss.count} seeds)" if loss.count > 1 else ""
    )


def _difference(cell: Cell) -> str:
    difference = cell.difference
    error = f" ± {difference.error:.5f} (standard error)" if difference.count > 1 else ""
    return f"{difference.mean:+.5f}{error}"


def _figures(study: Study, results: Sequence[Result]) -> Iterator[tuple[str, str, Figure]]:
    grouped = cells(study, results)
    if not any(math.isfinite(result.best_loss) for result in results):
        return
    several = len(results) > 1  # a single run would be a picture of one dot
    if several and any("optimizer.lr" in keys for keys in study.varied.values()):
        yield "learning_rate", CAPTIONS["learning_rate"], losses_by_rate(study, grouped)
    for arm, keys in study.varied.items():
        if several and len(keys) == 2:
            yield from _heat_maps(study, arm, keys, [cell for cell in grouped if cell.arm == arm])
    if several:
        yield "cells", CAPTIONS["cells"], losses_by_cell(study, grouped)
    if any(len(result.evaluations[0]) > 1 for result in results):
        yield "progress", CAPTIONS["progress"], loss_along_training(study, grouped)
    yield "rates", CAPTIONS["rates"], rates_along_training(study, grouped)


def _heat_maps(
    study: Study, arm: str, keys: Sequence[str], grouped: Sequence[Cell]
) -> Iterator[tuple[str, str, Figure]]:
    """One for each budget that the arm's runs are compared within."""
    for budget in budgets_of(study, arm):
        losses = [
            Spread.of(budget.loss(one) for one in cell.results if one.outcome is RunOutcome.FINISHED).mean
            for cell in grouped
        ]
        if any(map(math.isfinite, losses)):
            caption = f"Mean best validation loss of {arm} over {keys[0]} and {keys[1]}, within {budget.name}."
            stem = f"heat_{arm}_{budget.stem}" if budget.stem else f"heat_{arm}"
            yield (
                stem,
                caption,
                heat_map(f"{arm}, within {budget.name}", keys, grouped, losses),
            )


def _alpha_figures(study: Study, out: Path) -> Iterator[tuple[str, str, Figure]]:
    """For each arm that compares estimators: its first run's bursts."""
    for arm in study.varied:
        run = next(run for run in study.runs if run.arm == arm)
        estimates = Estimates.load(out / run.path)
        if estimates is not None and "biased" in estimates.kinds:
            yield f"alpha_{arm}", f"{CAPTIONS['alpha']} Run {run.name}.", burst_figure(estimates, title=run.name)
