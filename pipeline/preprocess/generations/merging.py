"""The statistics of two generations of rows as those of both, and how many distinct values there are between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.encode import collision_rate, distinct_estimate
from pipeline.schema import LogFormat
from pipeline.shards import AT_LEAST, AT_MOST, bounds_of

DROPPED = "dropped_negatives"


def merge_statistics(
    log_format: LogFormat,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    registers_SM: np.ndarray,
    uncounted: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The statistics (see summarize_counts) of the rows of `before` and of `after`.

    `registers_SM` are the HyperLogLog registers over all of these rows, M for each of the S sparse columns, but for the
    rows of `uncounted`, the statistics of those whose registers nobody has. Where there are some, the distinct values
    of a column and its collision rate are None, and `distinct_at_least`, `distinct_at_most`, `collision_rate_at_least`
    and `collision_rate_at_most` say between what they lie: the larger of the two counts, for all values may be the
    same, and their sum, for none may. Both are estimates with the standard error of `distinct`.
    """
    columns: dict[str, dict[str, Any]] = {}
    for name in (*log_format.dense, *filter(None, [log_format.weight])):
        columns[name] = _merged_integers(before["columns"][name], before["rows"], after["columns"][name], after["rows"])
    for j, name in enumerate(log_format.sparse):
        both = (before["columns"][name]["missing_rate"], after["columns"][name]["missing_rate"])
        columns[name] = {"missing_rate": _merged_rate(both[0], before["rows"], both[1], after["rows"])}
        counted = distinct_estimate(registers_SM[j])
        known = uncounted["columns"][name] if uncounted else None
        columns[name] |= _distinct_values(log_format.bucket_sizes[j], counted, known)
    splits = {name: _merged_labels(split, after["splits"][name]) for name, split in before["splits"].items()}
    dropped = before.get(DROPPED, 0) + after.get(DROPPED, 0)
    return {
        **_merged_labels(before, after),
        "splits": splits,
        "columns": columns,
        **({DROPPED: dropped} if dropped else {}),
    }


def _distinct_values(buckets: int, counted: int, uncounted: Mapping[str, Any] | None) -> dict[str, Any]:
    least = most = counted
    if uncounted:
        lower, upper = bounds_of(uncounted, "distinct")
        least, most = max(counted, lower), counted + upper
    rates = collision_rate(least, buckets), collision_rate(most, buckets)
    if least == most:
        return {"distinct": least, "buckets": buckets, "collision_rate": rates[0]}
    return {
        "distinct": None,
        "buckets": buckets,
        "collision_rate": None,
        **{f"distinct{AT_LEAST}": least, f"distinct{AT_MOST}": most},
        **{f"collision_rate{AT_LEAST}": rates[0], f"collision_rate{AT_MOST}": rates[1]},
    }


def _merged_integers(
    before: Mapping[str, Any], before_rows: int, after: Mapping[str, Any], after_rows: int
) -> dict[str, Any]:
    present = before_rows - _count(before["missing_rate"], before_rows)
    present_after = after_rows - _count(after["missing_rate"], after_rows)
    sides = [each for each, rows in ((before, present), (after, present_after)) if rows]
    total = sum(each["mean"] * rows for each, rows in ((before, present), (after, present_after)) if rows)
    return {
        "missing_rate": _merged_rate(before["missing_rate"], before_rows, after["missing_rate"], after_rows),
        "minimum": min((each["minimum"] for each in sides), default=None),
        "maximum": max((each["maximum"] for each in sides), default=None),
        "mean": total / (present + present_after) if sides else None,
    }


def _merged_labels(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    rate = _merged_rate(before["label_rate"], before["rows"], after["label_rate"], after["rows"])
    return {"rows": before["rows"] + after["rows"], "label_rate": rate}


def _merged_rate(before: float | None, before_rows: int, after: float | None, after_rows: int) -> float | None:
    rows = before_rows + after_rows
    return (_count(before, before_rows) + _count(after, after_rows)) / rows if rows else None


def _count(rate: float | None, rows: int) -> int:
    """The whole number that `rate` was made from, exactly: a quotient of integers below 2⁵² is that near."""
    return round((rate or 0.0) * rows)
