"""What the rows hold, counted in the pass that encodes them: labels, missing values, ranges, distinct categories."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasketch import HyperLogLogPlusPlus

from pipeline.compiled import compiled
from pipeline.encode.tsv import DISTINCT_PRECISION, Group, Tally, make_tally
from pipeline.schema import LogFormat


class Weights(NamedTuple):
    """Of how often rows count."""

    total: float = 0.0
    minimum: float | None = None
    maximum: float | None = None

    def with_rows(self, weight_R: np.ndarray) -> Weights:
        """These and those of further rows, 1 or more."""
        values = weight_R.astype(np.float64)
        return self.merged(Weights(float(values.sum()), float(values.min()), float(values.max())))

    def merged(self, other: Weights) -> Weights:
        """These and others."""
        minima = [each for each in (self.minimum, other.minimum) if each is not None]
        maxima = [each for each in (self.maximum, other.maximum) if each is not None]
        return Weights(self.total + other.total, min(minima, default=None), max(maxima, default=None))

    def summary(self, rows: int) -> dict[str, float | None]:
        """What a manifest says of the column."""
        mean = self.total / rows if rows else None
        return {"missing_rate": 0.0 if rows else None, "minimum": self.minimum, "maximum": self.maximum, "mean": mean}


class Counts:
    """Mergeable counts over rows; D dense and S sparse columns, M HyperLogLog registers."""

    def __init__(self, log_format: LogFormat) -> None:
        dense = len(log_format.dense)
        self.rows = 0
        self.positive = 0
        """Rows whose label is 1."""
        self.present_D = [0] * dense
        self.total_D = [0] * dense
        """Sums as Python integers: 2³¹ times 2³³ rows leaves int64."""
        self.minimum_D: list[int | None] = [None] * dense
        self.maximum_D: list[int | None] = [None] * dense
        self.tally: Tally = make_tally(log_format)
        self.dropped = 0
        """Rows of label 0 that were left out; not among `rows`, nor in any other count."""
        self.weighted = bool(log_format.weight)
        self.weight = Weights()
        """Of the rows, where the format has weights."""

    def add_group(self, group: Group, rows: int) -> None:
        """Count the first `rows` rows of `group`, whose categories `tally` counted while they were parsed."""
        self.rows += rows
        self.positive += int(group.label[:rows].sum())
        if self.weighted:
            self.weight = self.weight.with_rows(group.weight[:rows])
        columns = zip(*_dense_counts(group.dense, group.present, rows), strict=True)
        for i, (present, total, minimum, maximum) in enumerate(columns):
            if present:
                self._merge_dense(i, int(present), int(total), int(minimum), int(maximum))

    def merge(self, other: Counts) -> None:
        """Add the rows that `other` counted."""
        self.rows += other.rows
        self.positive += other.positive
        self.dropped += other.dropped
        self.weight = self.weight.merged(other.weight)
        for i, present in enumerate(other.present_D):
            minimum, maximum = other.minimum_D[i], other.maximum_D[i]
            if minimum is not None and maximum is not None:
                self._merge_dense(i, present, other.total_D[i], minimum, maximum)
        np.add(self.tally.missing, other.tally.missing, out=self.tally.missing)
        np.maximum(self.tally.registers, other.tally.registers, out=self.tally.registers)

    def _merge_dense(self, i: int, present: int, total: int, minimum: int, maximum: int) -> None:
        self.present_D[i] += present
        self.total_D[i] += total
        before_minimum, before_maximum = self.minimum_D[i], self.maximum_D[i]
        self.minimum_D[i] = minimum if before_minimum is None else min(before_minimum, minimum)
        self.maximum_D[i] = maximum if before_maximum is None else max(before_maximum, maximum)

    def save(self, path: Path) -> None:
        """Write the counts: a line of JSON, then the registers; `load` gives them back."""
        numbers = {
            "rows": self.rows,
            "positive": self.positive,
            "present": self.present_D,
            "total": self.total_D,
            "minimum": self.minimum_D,
            "maximum": self.maximum_D,
            "missing": self.tally.missing.tolist(),
            "dropped": self.dropped,
            "weight": list(self.weight),
        }
        with path.open("wb") as file:
            file.write(json.dumps(numbers).encode() + b"\n" + self.tally.registers.tobytes())

    @classmethod
    def load(cls, log_format: LogFormat, path: Path) -> Counts:
        """The counts that `save` wrote."""
        counts = cls(log_format)
        line, _, registers = path.read_bytes().partition(b"\n")
        numbers = json.loads(line)
        counts.rows, counts.positive = numbers["rows"], numbers["positive"]
        counts.present_D, counts.total_D = numbers["present"], numbers["total"]
        counts.minimum_D, counts.maximum_D = numbers["minimum"], numbers["maximum"]
        counts.tally.missing[:] = numbers["missing"]
        counts.dropped = numbers.get("dropped", 0)
        counts.weight = Weights(*numbers.get("weight", ()))
        counts.tally.registers[:] = np.frombuffer(registers, np.uint8).reshape(counts.tally.registers.shape)
        return counts


def summarize_counts(log_format: LogFormat, counts_by_split: Mapping[str, Counts]) -> dict[str, Any]:
    """The statistics of a manifest.

    `rows`, `label_rate` (None without rows); `splits`: the same for each; `columns`: `missing_rate` of every column,
    with `minimum`, `maximum` and `mean` of the present integers, or `distinct` (an estimate, standard error 1.6 %),
    `buckets` and `collision_rate` of a category. `dropped_negatives`: rows of label 0 that were left out, if any; the
    rest is without them.
    """
    total = Counts(log_format)
    for counts in counts_by_split.values():
        total.merge(counts)
    columns: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(log_format.dense):
        present = total.present_D[i]
        columns[name] = {
            "missing_rate": _rate(total.rows - present, total.rows),
            "minimum": total.minimum_D[i],
            "maximum": total.maximum_D[i],
            "mean": _rate(total.total_D[i], present),
        }
    for j, name in enumerate(log_format.sparse):
        distinct = distinct_estimate(total.tally.registers[j])
        columns[name] = {
            "missing_rate": _rate(int(total.tally.missing[j]), total.rows),
            "distinct": distinct,
            "buckets": log_format.bucket_sizes[j],
            "collision_rate": collision_rate(distinct, log_format.bucket_sizes[j]),
        }
    if total.weighted:
        columns[log_format.weight] = total.weight.summary(total.rows)
    return {
        "rows": total.rows,
        "label_rate": _rate(total.positive, total.rows),
        "splits": {
            name: {"rows": counts.rows, "label_rate": _rate(counts.positive, counts.rows)}
            for name, counts in counts_by_split.items()
        },
        "columns": columns,
        **({"dropped_negatives": total.dropped} if total.dropped else {}),
    }


def merged(log_format: LogFormat, parts: Iterable[Counts]) -> Counts:
    """The counts over all rows of all parts, which may come one at a time."""
    total = Counts(log_format)
    for part in parts:
        total.merge(part)
    return total


def distinct_estimate(registers_M: np.ndarray) -> int:
    """HyperLogLog++ estimate of how many different hashes were seen."""
    return round(float(HyperLogLogPlusPlus(p=DISTINCT_PRECISION, reg=registers_M.astype(np.int8)).count()))


def collision_rate(distinct: int, buckets: int) -> float:
    """The expected share of n distinct values that share their bucket with an earlier one: 1 − B(1 − (1 − 1/B)ⁿ)/n."""
    if distinct == 0:
        return 0.0
    if buckets == 1:
        return 1 - 1 / distinct
    occupied = -buckets * math.expm1(distinct * math.log1p(-1 / buckets))
    return max(0.0, 1 - occupied / distinct)


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@compiled
def _dense_counts(dense, present, rows):
    """Over the first `rows` present values of each column: how many, their sum, minimum and maximum."""
    columns = dense.shape[0]
    counts = np.zeros(columns, np.int64)
    totals = np.zeros(columns, np.int64)
    minima = np.empty(columns, np.int64)
    maxima = np.empty(columns, np.int64)
    highest, lowest = np.int32(2**31 - 1), np.int32(-(2**31))
    for i in range(columns):
        count = total = 0
        minimum, maximum = highest, lowest
        for row in range(rows):  # selects, no branches: the loop vectorizes
            value, here = dense[i, row], present[i, row]
            count += here
            total += value  # 0 if it is missing
            minimum = min(minimum, value if here else highest)
            maximum = max(maximum, value if here else lowest)
        counts[i], totals[i], minima[i], maxima[i] = count, total, minimum, maximum
    return counts, totals, minima, maxima
