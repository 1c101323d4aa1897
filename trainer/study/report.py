"""A study's results as tables, pictures and one page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from trainer.report import DPI, Table, duration, write_page, write_table
from trainer.study.alpha import Estimates, burst_figure, statistics
from trainer.study.definition import RESOLVED, Study, read_study
from trainer.study.figures import (
    arm_colors,
    heat_map,
    loss_along_training,
    losses_by_cell,
    losses_by_rate,
    rates_along_training,
)
from trainer.study.grid import value_text
from trainer.study.results import Cell, Result, RunOutcome, cells, collect, correlations
from trainer.study.targets.pages import TargetPages

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

    Raises: ConfigError if `out` holds no study; OSError if it cannot be written.
    """
    study = read_study(out / RESOLVED).unfold()
    results = list(collect(study, out).values())
    reached = TargetPages.of(study, out, results, colors=arm_colors(study))
    tables = _written(out, reached.tables()) + write_results(study, out, results)
    tables += _written(out, [_alpha_table(study, out)])
    pictures = []
    figures = itertools.chain(reached.figures(), _figures(study, results), _alpha_figures(study, out))
    for stem, caption, figure in figures:
        figure.savefig(out / f"{stem}.png", dpi=DPI, facecolor="white")
        pictures.append((stem, caption))
    page = out / "index.html"
    write_page(
        page, title=str(out), said=[*sentences(study, results), *reached.sentences()], pictures=pictures, tables=tables
    )
    return page


def write_results(study: Study, out: Path, results: Sequence[Result]) -> list[Table]:
    """Writes summary.csv, correlations.csv (if there are any) and results.csv; returns them as tables."""
    grouped = cells(study, results)
    return _written(
        out, [_summary_table(study, grouped), _correlation_table(study, results), _result_table(study, results)]
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
            mine = [cell for cell in grouped if cell.arm == arm]
            caption = f"Mean best validation loss of {arm} over {keys[0]} and {keys[1]}."
            yield f"heat_{arm}", caption, heat_map(arm, keys, mine)
    if several:
        yield "cells", CAPTIONS["cells"], losses_by_cell(study, grouped)
    if any(len(result.evaluations[0]) > 1 for result in results):
        yield "progress", CAPTIONS["progress"], loss_along_training(study, grouped)
    yield "rates", CAPTIONS["rates"], rates_along_training(study, grouped)


def _alpha_figures(study: Study, out: Path) -> Iterator[tuple[str, str, Figure]]:
    """For each arm that compares estimators: its first run's bursts."""
    for arm in study.varied:
        run = next(run for run in study.runs if run.arm == arm)
        estimates = Estimates.load(out / run.path)
        if estimates is not None and "biased" in estimates.kinds:
            yield f"alpha_{arm}", f"{CAPTIONS['alpha']} Run {run.name}.", burst_figure(estimates, title=run.name)


def _summary_table(study: Study, grouped: Sequence[Cell]) -> Table:
    first = study.settings.arm[0].name
    columns = (
        "arm",
        *study.keys,
        "runs",
        "finished",
        "diverged",
        "best_validation_loss",
        "sd",
        "min",
        "max",
        "final_validation_loss",
        "test_loss",
        "best_of_arm",
        f"less_best_of_{first}",
        "standard_error",
    )
    rows = [
        (
            cell.arm,
            *(value_text(cell.values[key]) for key in study.keys),
            len(cell.results),
            cell.count(RunOutcome.FINISHED),
            cell.count(RunOutcome.DIVERGED),
            cell.best_loss.mean,
            cell.best_loss.sd,
            cell.best_loss.low,
            cell.best_loss.high,
            cell.final_loss.mean,
            cell.test_loss.mean,
            "yes" if cell.best_of_arm else "",
            cell.difference.mean,
            cell.difference.error,
        )
        for cell in grouped
    ]
    return Table(stem="summary", title="Cells, over their seeds", columns=columns, rows=rows)


def _alpha_table(study: Study, out: Path) -> Table:
    """One row a run that measured α*; the first estimate of each is left out."""
    loaded = ((run, Estimates.load(out / run.path)) for run in study.runs)
    figures = {run.name: statistics(estimates) for run, estimates in loaded if estimates is not None}
    columns = tuple(dict.fromkeys(name for values in figures.values() for name in values))
    rows = [(run, *(values.get(name) for name in columns)) for run, values in figures.items()]
    return Table(stem="alpha", title="Estimates of α*", columns=("run", *columns), rows=rows)


def _result_table(study: Study, results: Sequence[Result]) -> Table:
    within = list(results[0].within) if results else []
    columns = (
        "arm",
        *study.keys,
        "seed",
        "outcome",
        "steps",
        "best_validation_loss",
        "best_step",
        "final_validation_loss",
        "test_loss",
        "training_seconds",
        "rate_mean",
        "rate_median",
        "rate_sd",
        "rate_min",
        "rate_max",
        *within,
        "run",
    )
    rows = [
        (
            result.run.arm,
            *(value_text(result.run.values[key]) for key in study.keys),
            str(result.run.seed),
            str(result.outcome),
            result.steps,
            result.best_loss,
            result.best_step,
            result.final_loss,
            result.test_loss,
            result.training_seconds,
            result.rate.mean,
            result.rate_median,
            result.rate.sd,
            result.rate.low,
            result.rate.high,
            *(result.within[name] for name in within),
            str(result.run.path),
        )
        for result in results
    ]
    return Table(stem="results", title="Runs", columns=columns, rows=rows)


def _correlation_table(study: Study, results: Sequence[Result]) -> Table:
    rows = [(found.arm, found.number, found.runs, found.r, found.p) for found in correlations(study, results)]
    title = "What the best validation loss goes with (Pearson's r, and p without any connection)"
    return Table(stem="correlations", title=title, columns=("arm", "number", "runs", "r", "p"), rows=rows)
