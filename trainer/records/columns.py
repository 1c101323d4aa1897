"""steps.jsonl and alpha.jsonl read into columns, in bounded memory: a line is forgotten once its numbers are taken."""

from __future__ import annotations

import math
import operator
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.records.lines import bin_middle, not_taken_back
from trainer.records.records import read_records, records_in

Column = NDArray[np.float64]
Damaged = Callable[[int], None]

STEP_FIELDS = ("step", "epoch", "rows", "loss", "learning_rate", "scheduled_rate", "seconds", "steps")
SPREAD_FIELDS = ("seconds", "learning_rate")
ALPHA_FIELDS = ("step", "age", "slope", "curvature", "relative", "absolute", "standard_error", "learning_rate")
VARIANTS = ("biased", "hybrid")
SUMS = 10
"""`measured`, `negative`, six of `pairs` and two of `per_rate`, as `merge_estimates` has them."""


@dataclass(frozen=True, kw_only=True)
class StepColumns:
    """steps.jsonl."""

    columns: dict[str, Column]
    """`STEP_FIELDS`, and `last_step`, `finite_losses` (how many steps `loss` is the mean of), `least_rate`, `most_rate`
    and `rate_squares`, Σ (rate − mean rate)² over the row's steps."""
    phases: dict[str, Column]
    spread: dict[str, tuple[Column, Column]]
    """By `SPREAD_FIELDS` the values of the steps in merged rows, and how many had each."""


@dataclass(frozen=True, kw_only=True)
class EstimateColumns:
    """alpha.jsonl."""

    columns: dict[str, Column]
    outcomes: dict[str, int]


class _FieldSpread(msgspec.Struct):
    least: float
    most: float
    bins: dict[str, int] = {}
    squares: float = 0.0


class _StepLine(msgspec.Struct):
    """One line of steps.jsonl; a record that states its fields is read several times faster than a free one."""

    step: float
    epoch: float | None = math.nan
    rows: float | None = math.nan
    loss: float | None = math.nan
    learning_rate: float | None = math.nan
    scheduled_rate: float | None = math.nan
    seconds: float | None = math.nan
    phases: dict[str, float | None] = {}
    steps: int = 1
    last_step: int | None = None
    nonfinite: int = 0
    spread: dict[str, _FieldSpread] = {}


def read_steps(path: Path, *, damaged: Damaged) -> StepColumns:
    """The lines of `path` but those that later ones take back: a run that was killed may have written a step twice."""
    with path.open("rb") if path.is_file() else BytesIO() as lines:
        return _read_steps(lines, path, damaged)


def _read_steps(lines: BinaryIO, path: Path, damaged: Damaged) -> StepColumns:
    columns = {name: array("d") for name in (*STEP_FIELDS, "last_step", "finite_losses")}
    extremes = {name: array("d") for name in ("least_rate", "most_rate", "rate_squares")}
    spread = {name: Counter[float]() for name in SPREAD_FIELDS}
    merged_lines = array("q")
    phases: dict[str, array[float]] = {}
    fields = operator.attrgetter(*STEP_FIELDS)
    own = tuple(columns[name] for name in STEP_FIELDS)
    last_steps, finite_losses = columns["last_step"], columns["finite_losses"]
    count = 0
    for count, record in enumerate(records_in(lines, path, _StepLine, damaged=damaged), 1):
        for column, value in zip(own, fields(record), strict=True):
            column.append(math.nan if value is None else value)
        last_steps.append(record.step + record.steps - 1 if record.last_step is None else record.last_step)
        finite_losses.append(record.steps - record.nonfinite)
        for name, seconds in record.phases.items():
            column = phases.get(name)
            if column is None:
                column = phases[name] = array("d")
            if len(column) < count - 1:
                column.extend([0.0] * (count - 1 - len(column)))
            column.append(math.nan if seconds is None else seconds)
        if record.spread:
            _take_spread(record, spread)
            rate = record.spread.get("learning_rate") or _FieldSpread(math.nan, math.nan)
            merged_lines.append(count - 1)
            for name, value in zip(extremes, (rate.least, rate.most, rate.squares), strict=True):
                extremes[name].append(value)
    for column in phases.values():
        column.extend([0.0] * (count - len(column)))
    steps = {name: np.asarray(column) for name, column in columns.items()}
    merged = np.asarray(merged_lines, dtype=np.int64)
    for name, default in (("least_rate", steps["learning_rate"]), ("most_rate", steps["learning_rate"])):
        steps[name] = _with(default, merged, extremes[name])
    steps["rate_squares"] = _with(np.zeros(count), merged, extremes["rate_squares"])
    keep = not_taken_back(steps["step"])
    if not keep[merged].all():  # which is rare: a file that is thinned goes back with its run
        lines.seek(0)  # of this file: a run that goes on may have put another in its place
        again = records_in(lines, path, _StepLine, damaged=lambda _: None)
        spread = _kept_spread(again, keep)
    if keep.all():
        found = {name: np.asarray(seconds) for name, seconds in phases.items()}
    else:
        steps = {name: column[keep] for name, column in steps.items()}
        found = {name: np.asarray(seconds)[keep] for name, seconds in phases.items()}
    found = {name: column for name, column in found.items() if np.any(column)}
    return StepColumns(columns=steps, phases=found, spread={name: _weighed(one) for name, one in spread.items()})


def _take_spread(record: _StepLine, spread: Mapping[str, Counter[float]]) -> None:
    """Adds the steps of a merged line by value: the middle of a bin, or at most two of the line's own."""
    for name, counted in spread.items():
        field = record.spread.get(name)
        if field is not None:
            for number, count in field.bins.items():
                counted[min(max(bin_middle(int(number)), field.least), field.most)] += count


def _kept_spread(records: Iterable[_StepLine], keep: NDArray[np.bool_]) -> dict[str, Counter[float]]:
    """Of the lines that are kept alone."""
    spread = {name: Counter[float]() for name in SPREAD_FIELDS}
    for record, kept in zip(records, keep.tolist(), strict=False):  # there may be more by now
        if kept:
            _take_spread(record, spread)
    return spread


def _weighed(counted: Counter[float]) -> tuple[Column, Column]:
    """Values, ascending, and how often each was counted."""
    values = sorted(counted)
    return np.array(values, dtype=np.float64), np.array([counted[value] for value in values], dtype=np.float64)


def _with(column: Column, rows: NDArray[np.int64], values: array[float]) -> Column:
    """A copy of the column with other values in some rows."""
    column = column.copy()
    column[rows] = values
    return column


class _Relative(msgspec.Struct):
    relative: float | None = math.nan


class _Merged(msgspec.Struct):
    outcomes: dict[str, int]
    measured: int
    negative: int
    pairs: tuple[float, float, float, float, float, float]
    per_rate: tuple[float, float]


class _AlphaLine(msgspec.Struct):
    step: float | None = math.nan
    age: float | None = math.nan
    slope: float | None = math.nan
    curvature: float | None = math.nan
    relative: float | None = math.nan
    absolute: float | None = math.nan
    standard_error: float | None = math.nan
    learning_rate: float | None = math.nan
    outcome: str = "unknown"
    biased: _Relative | None = None
    hybrid: _Relative | None = None
    estimates: int = 1
    last_step: float | None = None
    merged: _Merged | None = None


def read_estimates(path: Path, *, damaged: Damaged) -> EstimateColumns:
    """The latest line of each step in `path`, ascending."""
    columns = {name: array("d") for name in (*ALPHA_FIELDS, *VARIANTS, "estimates", "last_step")}
    numbers: dict[str, int] = {}
    """Of the outcomes met so far."""
    outcomes, merged = array("q"), dict[int, _Merged]()
    fields = operator.attrgetter(*ALPHA_FIELDS)
    own = tuple(columns[name] for name in ALPHA_FIELDS)
    variants = [(columns[name], operator.attrgetter(name)) for name in VARIANTS]
    for line, record in enumerate(read_records(path, _AlphaLine, damaged=damaged)):
        for column, value in zip(own, fields(record), strict=True):
            column.append(math.nan if value is None else value)
        for column, variant in variants:
            found = variant(record)
            column.append(math.nan if found is None or found.relative is None else found.relative)
        columns["estimates"].append(record.estimates)
        last = record.step if record.last_step is None else record.last_step
        columns["last_step"].append(math.nan if last is None else last)
        outcomes.append(numbers.setdefault(record.outcome, len(numbers)))
        if record.merged is not None:
            merged[line] = record.merged
    table = {name: np.asarray(column) for name, column in columns.items()}
    keep = _latest(table["step"])
    sums = _sums(table)
    for line, one in merged.items():
        sums[line] = (one.measured, one.negative, *one.pairs, *one.per_rate)
    table = {name: column[keep] for name, column in table.items() if name not in VARIANTS or not np.isnan(column).all()}
    sums = sums[keep]
    table |= {"measured": sums[:, 0], "negative": sums[:, 1], "pairs": sums[:, 2:8], "per_rate": sums[:, 8:]}
    return EstimateColumns(columns=table, outcomes=_counted(np.asarray(outcomes)[keep], keep, list(numbers), merged))


def _latest(step: Column) -> NDArray[np.int64]:
    """The last row of each step, in the order of the steps; rows without one are left out."""
    _, from_the_end = np.unique(step[::-1], return_index=True)
    rows = len(step) - 1 - from_the_end
    return rows[~np.isnan(step[rows])]


def _sums(table: Mapping[str, Column]) -> NDArray[np.float64]:
    """What `merge_estimates` would sum of each row, were it a single estimate."""
    slope, curvature, rate = (table[name] for name in ("slope", "curvature", "learning_rate"))
    sums = np.zeros((len(slope), SUMS))
    sums[:, 0] = np.isfinite(table["relative"])
    sums[:, 1] = table["relative"] < 0
    both = np.isfinite(table["relative"]) & np.isfinite(slope) & np.isfinite(curvature)
    slope, curvature = slope[both], curvature[both]
    pairs = (np.ones(len(slope)), slope, curvature, slope * slope, slope * curvature, curvature * curvature)
    sums[both, 2:8] = np.column_stack(pairs)
    rated = both & (rate > 0)
    rate = rate[rated]
    sums[rated, 8:] = np.column_stack((table["slope"][rated] / rate, table["curvature"][rated] / rate**2))
    return sums


def _counted(
    outcomes: NDArray[np.int64], rows: NDArray[np.int64], names: list[str], merged: Mapping[int, _Merged]
) -> dict[str, int]:
    """How many estimates had each outcome, in the order of their first row."""
    counted: Counter[str] = Counter()
    for row, number in zip(rows.tolist(), outcomes.tolist(), strict=True):
        if row in merged:
            counted.update(merged[row].outcomes)
        else:
            counted[names[number]] += 1
    return dict(counted)
