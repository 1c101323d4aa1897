"""A run's report: figures as PNG, tables as CSV, and one HTML page that shows them."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from ops.live import LEAST_ESTIMATES
from pipeline.errors import InputError
from pipeline.shards import write_atomically
from trainer.records import EVALUATION_FIELDS, Column, RunHistory
from trainer.report.figures import figures
from trainer.report.summary import (
    alpha_bins,
    best_of_split,
    bound,
    evaluation_at,
    horizon_summary,
    quantiles,
    rate_summary,
    time_by_phase,
)
from trainer.report.tables import Table, rank_tables

CAPTIONS = {
    "loss": "Training loss (each point a mean of steps if there are many) and the evaluations of every split.",
    "learning_rate": "The rate the optimizer used against the one that α* suggests. Where the blue line runs above the "
    "orange one, longer steps would have paid; a negative α* says that a step climbed on fresh rows. "
    "The scale is logarithmic away from zero and linear about it.",
    "time": "Every moment of a step belongs to exactly one phase. Waiting for data is the pipeline's share; "
    "all others are the trainer's. Evaluations and checkpoints come between steps. The first step, which waits for the "
    "pipeline to fill, is drawn apart.",
    "alpha": "What came of every estimate, and how the numbers are spread. Single estimates scatter widely: "
    "the pooled number is the one to go by.",
    "horizon": "α* of the latest steps as a whole, a quarter or so of all at a time. At ½ they gained nothing, at 1 "
    "their sum landed at the minimum along it; policy auto keeps it a little above ½. Bars are 95 % intervals.",
    "bias": "From one batch alone (biased), α* is far too large, because a step always looks good on the rows it was "
    "made from.",
}
TEMPLATES = Path(__file__).parent / "templates"
DPI = 150
ROUNDING = 1e-12
"""Of a mean: what lies below is no deviation from it."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class ReportError(InputError):
    """There is nothing to report on."""


def write_report(run: Path) -> Path:
    """Writes RUN/report/ (index.html, PNGs, CSVs) from RUN/*.jsonl and returns the page's path.

    A run in progress or one that was killed is reported as far as it got.
    Raises: ReportError if no step is recorded; OSError if the folder cannot be written.
    """
    if not run.is_dir():
        raise ReportError(f"{run}: is not a run directory; give the folder that `alphastream train --run` wrote")
    log = RunHistory.load(run)
    if len(log.steps["step"]) == 0:
        raise ReportError(f"{run}: holds no finished step in steps.jsonl; train it for at least one step first")
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    drawn = figures(log)
    for stem, figure in drawn.items():
        write_figure(folder / f"{stem}.png", figure)
    tables = [_summary_table(log), _evaluation_table(log), _rate_table(log), _phase_table(log), _outcome_table(log)]
    tables += rank_tables(log)
    tables = [table for table in tables if table.rows]
    for table in tables:
        write_table(folder / f"{table.stem}.csv", table)
    page = folder / "index.html"
    write_page(
        page,
        title=str(log.path),
        said=sentences(log),
        pictures=[(stem, _caption(stem, log)) for stem in drawn],
        tables=tables,
        messages=log.messages[-40:],
    )
    return page


def sentences(log: RunHistory) -> list[str]:
    """The run in a few plain sentences."""
    steps = log.steps
    seconds, rows = float(np.nansum(steps["seconds"])), float(np.nansum(steps["rows"]))
    speed = f", {rows / seconds:,.0f} rows/s" if seconds else ""
    said = [_divergence(log)] if log.diverged else []
    said += [f"{_steps(log.step_count)} over {rows:,.0f} rows in {duration(seconds)} of training{speed}."]
    if log.step_count > 1:  # the first one waits for the pipeline to fill, which says nothing of the bound
        verdict = str(bound(log))
        said.append(f"{verdict[0].upper()}{verdict[1:]}.")
    if log.ranks is not None:
        slowest = str(log.ranks)
        said.append(f"{slowest[0].upper()}{slowest[1:]}.")
    best = best_of_split(log)
    if best is not None:
        text = f"Best validation loss {number(best['loss'])}, after {_steps(best['step'])}"
        test = evaluation_at(log, "test", best["step"])
        said.append(text + (f" (test loss there: {number(test['loss'])})." if test else "."))
    said += _alpha_sentences(log)
    if log.thinned:
        said.append(
            "Lines of older steps are merged: sums, means and extremes are those of all steps, medians and percentiles "
            "of seconds and rates within 1 %, and single estimates of α* a sample."
        )
    if log.damaged_lines:
        said.append(f"{log.damaged_lines} lines of the records were not whole and were left out.")
    return said


def _steps(count: float) -> str:
    return f"{count:,.0f} step" + ("" if count == 1 else "s")


def _caption(stem: str, log: RunHistory) -> str:
    if stem == "learning_rate" and not alpha_bins(log):
        return "The rate the optimizer used; there are too few estimates of α* for the rate that it would suggest."
    return CAPTIONS[stem]


def _divergence(log: RunHistory) -> str:
    finite = np.flatnonzero(np.isfinite(log.steps["loss"]))
    after = (
        f"its last finite loss was {number(float(log.steps['loss'][finite[-1]]))}, at step"
        if len(finite)
        else "from step"
    )
    step = log.steps["step"][finite[-1] if len(finite) else 0]
    return (
        f"This run diverged: {after} {step:,.0f}. Its figures say nothing of the model; lower optimizer.lr, or "
        "lengthen schedule.warmup_fraction, and train again."
    )


def _alpha_sentences(log: RunHistory) -> list[str]:
    """α* of many steps, where that was measured and led the rate, else of single ones."""
    many = horizon_summary(log)
    if many is None:
        return _single_sentences(log)
    return [
        f"α* of many steps as a whole (up to {_steps(many.longest)}): {number(many.pooled, 3)}, pooled over the later "
        f"half of {many.measurements:,} measurements; the middle half of these lies between {number(many.lower, 2)} "
        f"and {number(many.upper, 2)}. At ½ the steps gain nothing, at 1 their sum lands at the minimum along it; "
        "policy auto aims a little above ½.",
        f"{_steps(log.alpha['measured'].sum())} at the beginning were measured one by one, which says nothing of the "
        "rate since.",
    ]


def _single_sentences(log: RunHistory) -> list[str]:
    """α* as one pooled factor with its interval, then how single estimates spread; or why there is none."""
    rates, measured = rate_summary(log), int(log.alpha["measured"].sum())
    if rates is None:
        return [f"α* is not shown: it takes {LEAST_ESTIMATES} estimates, and {measured} carried a number."] * bool(
            log.outcomes
        )
    spread = (
        f"Single estimates scatter: the middle half of {rates.estimates:,} lies between {number(rates.lower, 2)} and "
        f"{number(rates.upper, 2)}, {100 * rates.negative / rates.estimates:.0f} % are negative."
    )
    if rates.pooled is None or not math.isfinite(rates.pooled):
        why = "the curvature of its estimates sums to nothing, or one or two of them have most of it"
        return [f"α* is not shown: {why}.", spread]
    if rates.margin is None or not math.isfinite(rates.margin):
        return [f"α* {number(rates.pooled, 3)}: the length that steps should have had, times the applied one.", spread]
    low, high = rates.pooled - rates.margin, rates.pooled + rates.margin
    advice = "longer steps would have paid" if low > 1 else "shorter steps would have paid"
    if low <= 1 <= high:
        advice = "the interval contains 1, so the applied rate may have been right"
    return [
        f"α* {number(rates.pooled, 3)} ± {number(rates.margin, 2)}: the length that steps should have had, times the "
        f"applied one (pooled, 95 % interval); {advice}.",
        spread,
    ]


def duration(seconds: float) -> str:
    """Seconds in words of at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _summary_table(log: RunHistory) -> Table:
    steps, verdict, best, rates = log.steps, bound(log), best_of_split(log), rate_summary(log)
    applied, step_seconds = log.values("learning_rate"), log.values("seconds")
    mean, deviation = _mean_and_deviation(log)
    seconds, rows = float(np.nansum(steps["seconds"])), float(np.nansum(steps["rows"]))
    entries: list[tuple[str, Any, str]] = [
        ("steps", log.step_count, ""),
        ("rows", rows, ""),
        ("training time", seconds, "s"),
        ("speed", rows / seconds if seconds else math.nan, "rows/s"),
        ("step time, median", _quantile(step_seconds, 0.5), "s"),
        ("step time, 99th percentile", _quantile(step_seconds, 0.99), "s"),
        ("share of time waiting for data", verdict.data_share, ""),
        ("share of time evaluating and saving", verdict.pause_share, ""),
        *([] if log.ranks is None else [("share of time communicating", verdict.communication_share, "")]),
        ("learning rate applied, mean", mean, ""),
        ("learning rate applied, median", _quantile(applied, 0.5), ""),
        ("learning rate applied, standard deviation", deviation, ""),
        ("learning rate applied, lowest", _extreme(np.min, steps["least_rate"]), ""),
        ("learning rate applied, highest", _extreme(np.max, steps["most_rate"]), ""),
    ]
    if best is not None:
        entries += [("best validation loss", best["loss"], ""), ("best validation loss at step", best["step"], "")]
    many = horizon_summary(log)
    if many is not None:
        entries += [
            ("α* of many steps, measurements with a number", many.measurements, ""),
            ("α* of many steps, longest", many.longest, "steps"),
            ("α* of many steps, pooled over the later half", many.pooled, ""),
            ("α* of many steps, lower quartile of the later half", many.lower, ""),
            ("α* of many steps, upper quartile of the later half", many.upper, ""),
        ]
    if rates is not None:
        when = "" if many is None else ", at the beginning"
        entries += [
            (f"α* estimates with a number{when}", rates.estimates, ""),
            (f"α* estimates that are negative{when}", rates.negative, ""),
            (f"α*, pooled{when}", rates.pooled, ""),
            (f"α*, standard error{when}", rates.pooled_error, ""),
            (f"single estimates of α*, lower quartile{when}", rates.lower, ""),
            (f"single estimates of α*, median{when}", rates.median, ""),
            (f"single estimates of α*, upper quartile{when}", rates.upper, ""),
        ]
    return Table(stem="summary", title="The run in figures", columns=("figure", "value", "unit"), rows=entries)


def _quantile(values: tuple[Column, Column], share: float) -> float:
    """Of values that each occur so often; NaN if there is none, which a table then leaves empty."""
    return float(quantiles(values[0], [share], values[1])[0]) if len(values[0]) else math.nan


def _extreme(of: Callable[[Column], np.float64], values: Column) -> float:
    finite = values[np.isfinite(values)]
    return float(of(finite)) if len(finite) else math.nan


def _mean_and_deviation(log: RunHistory) -> tuple[float, float]:
    """Of the rates of all steps, exactly, from means and squared deviations of the rows."""
    finite = np.isfinite(log.steps["learning_rate"])
    if not finite.any():
        return math.nan, math.nan
    rate, steps, squares = (log.steps[name][finite] for name in ("learning_rate", "steps", "rate_squares"))
    mean = float(np.average(rate, weights=steps))
    deviation = math.sqrt(float((squares + steps * (rate - mean) ** 2).sum() / steps.sum()))
    # what the rounding of a mean leaves of one and the same rate is no deviation
    return mean, deviation if deviation > ROUNDING * abs(mean) else 0.0


def _evaluation_table(log: RunHistory) -> Table:
    rows = [
        (split, *(float(table[name][index]) for name in EVALUATION_FIELDS))
        for split, table in log.evaluations.items()
        for index in range(len(table["step"]))
    ]
    return Table(stem="evaluations", title="Evaluations", columns=("split", *EVALUATION_FIELDS), rows=rows)


def _rate_table(log: RunHistory) -> Table:
    columns = (
        "first_step",
        "last_step",
        "estimates",
        "negative",
        "lower",
        "median",
        "upper",
        "pooled",
        "learning_rate",
    )
    rows = [tuple(getattr(one, name) for name in columns) for one in alpha_bins(log)]
    return Table(stem="rates", title="The rate that α* suggests, along the run", columns=columns, rows=rows)


def _phase_table(log: RunHistory) -> Table:
    """Shares are those of the verdict, of the figure and of the live page: without the first step, which is apart."""
    counted = time_by_phase(log)
    first = {name: float(column[0]) for name, column in log.phases.items()} if len(log.steps["step"]) > 1 else {}
    spent = sum(counted.values()) or 1.0
    rows = [
        (name, counted.get(name, 0.0) + first.get(name, 0.0), counted.get(name, 0.0) / spent, first.get(name, 0.0))
        for name in dict.fromkeys([*counted, *first])
        if counted.get(name, 0.0) + first.get(name, 0.0) > 0
    ]
    return Table(
        stem="phases",
        title="Time by phase; shares are without the first step",
        columns=("phase", "seconds", "share", "first_step_seconds"),
        rows=rows,
    )


def _outcome_table(log: RunHistory) -> Table:
    counts = Counter(log.outcomes)
    rows = [(name, count, count / counts.total()) for name, count in counts.most_common()]
    return Table(stem="outcomes", title="α* outcomes", columns=("outcome", "estimates", "share"), rows=rows)


def write_figure(path: Path, figure: Figure) -> None:
    """One PNG file, whole or not at all."""
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=DPI, facecolor="white")
    write_atomically(path, drawing.getvalue())


def write_table(path: Path, table: Table) -> None:
    """One CSV file with a header, whole or not at all; what is not known stays empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table.columns)
    writer.writerows([_plain(value) for value in row] for row in table.rows)
    write_atomically(path, text.getvalue().encode())


def _plain(value: Any) -> Any:
    """A value as a spreadsheet wants it: nothing for what is not known, no decimal point on whole numbers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def shown(value: Any) -> str:
    """A value as a person wants to read it."""
    plain = _plain(value)
    return number(plain) if isinstance(plain, int | float) else plain or "–"


def number(value: float, digits: int = 5) -> str:
    """A number of `digits` significant digits: whole ones with all of theirs, very large or small ones as a power."""
    size = abs(value)
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and size < 1e9:
        return f"{value:,.0f}"
    if 1e-4 <= size < 1e6:
        return f"{value:.{digits}g}" if size < 10.0**digits else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def write_page(
    page: Path,
    *,
    title: str,
    said: Iterable[str],
    pictures: Iterable[tuple[str, str]],
    tables: Iterable[Table],
    messages: Iterable[tuple[int | None, str]] = (),
) -> None:
    """Writes an HTML page, whole or not at all: sentences, (stem, caption) of PNGs beside it, tables, messages."""
    text = page_text("report.html", run=title, sentences=said, figures=pictures, tables=tables, messages=messages)
    write_atomically(page, text.encode())


def page_text(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """An HTML page from a template of `folder`, which extends our `page.html`: all pages look alike."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["shown"] = shown
    return environment.get_template(template).render(values)
