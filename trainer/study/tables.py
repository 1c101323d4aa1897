"""A study's tables: as files, a row a run or a cell with everything in it; as a page, no wider than a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.report import Table
from trainer.study.comparison import Correlation
from trainer.study.definition import Study
from trainer.study.grid import value_text
from trainer.study.results import Cell, Result, RunOutcome
from trainer.study.thesis import Estimates, statistics

WIDEST = 8
"""Columns that a page has room for."""
TURNED = 5
"""Rows that a table may have to be shown as columns."""


def readable(table: Table, keys: int) -> list[Table]:
    """A table as a page shows it: too wide a one is turned if it has few rows, else told in several tables, each of
    which begins with the first `keys` columns. Columns in which no row has anything are left out."""
    filled = [place for place, _ in enumerate(table.columns) if any(_filled(row[place]) for row in table.rows)]
    if len(filled) <= WIDEST or not table.rows:
        return [_chosen(table, filled)]
    if len(table.rows) <= TURNED:
        return [_turned(_chosen(table, filled), sum(place < keys for place in filled))]
    first = [place for place in filled if place < keys]
    others = [place for place in filled if place >= keys]
    width = max(2, WIDEST - len(first))
    parts = [others[start : start + width] for start in range(0, len(others), width)]
    return [
        replace(_chosen(table, [*first, *part]), title=f"{table.title}, {number} of {len(parts)}")
        for number, part in enumerate(parts, start=1)
    ]


def _filled(value: object) -> bool:
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))


def _chosen(table: Table, places: Sequence[int]) -> Table:
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=[[row[place] for place in places] for row in table.rows],
    )


def _turned(table: Table, keys: int) -> Table:
    """One row a column, one column a row, which is named after its keys."""
    names = [" ".join(str(value) for value in row[:keys] if _filled(value)) for row in table.rows]
    rows = [
        (column.replace("_", " "), *(row[place] for row in table.rows))
        for place, column in enumerate(table.columns)
        if place >= keys
    ]
    return replace(table, columns=("figure", *names), rows=rows)


def scaling_table(study: Study) -> Table:
    """What --scale made of the study's settings; no rows if it is not scaled."""
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for one in study.settings.scaled:
        together.setdefault((one.key, one.was, one.now, one.why), []).append(one.arm)
    rows = [
        (key, ", ".join(filter(None, arms)) or "all", was, now, why) for (key, was, now, why), arms in together.items()
    ]
    return Table(
        stem="scaled",
        title=f"What was scaled by {study.settings.scaled_by}",
        columns=("setting", "arms", "unscaled", "here", "how"),
        rows=rows,
    )


def cell_table(study: Study, grouped: Sequence[Cell]) -> Table:
    """One row a cell."""
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


def alpha_table(study: Study, out: Path) -> Table:
    """One row a run that measured α*; the first estimate of each is left out."""
    loaded = ((run, Estimates.load(out / run.path)) for run in study.runs)
    figures = {run.name: statistics(estimates) for run, estimates in loaded if estimates is not None}
    columns = tuple(dict.fromkeys(name for values in figures.values() for name in values))
    rows = [(run, *(values.get(name) for name in columns)) for run, values in figures.items()]
    return Table(stem="alpha", title="Estimates of α*", columns=("run", *columns), rows=rows)


def result_table(study: Study, results: Sequence[Result]) -> Table:
    """One row a run."""
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


def correlation_table(found: Sequence[Correlation]) -> Table:
    """One row a budget and number."""
    rows = [(one.arm, one.budget, one.number, one.runs, one.r, one.p) for one in found]
    title = "What the best validation loss goes with (Pearson's r, and p without any connection)"
    return Table(stem="correlations", title=title, columns=("arm", "budget", "number", "runs", "r", "p"), rows=rows)
