"""What a data folder holds, as plain rows that a table or JSON can show, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.schema import SPLITS
from pipeline.shards.manifest import Manifest

MANY_COLLISIONS = 0.1
"""A column that loses more of its values to collisions is worth a word."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Three tables, each a list of rows with the same keys; a None is not known or does not apply."""

    data: list[dict[str, Any]]
    """One row: rows, rejected_rows, label_rate, bytes, bytes_per_row, shards, compression, format, sources."""
    splits: list[dict[str, Any]]
    """A row a split: split, rows, label_rate, shards, bytes."""
    columns: list[dict[str, Any]]
    """A row a column: column, missing_rate, minimum, maximum, mean, distinct, buckets, collision_rate."""
    files: dict[str, list[str]]
    """The log files that each split was made from, in order."""
    described: list[str]
    """The same in lines for people."""
    warnings: list[str]
    """See `warnings_of`."""


def inspect_data(data: str | Path) -> Overview:
    """The overview of a data folder, from its manifest alone.

    Raises: InputError if `data` is not a finished data folder; StorageError if its manifest is damaged.
    """
    manifest = Manifest.load(data)
    statistics = manifest.statistics
    splits = [
        {
            "split": name,
            "rows": split.rows,
            "label_rate": statistics["splits"][name]["label_rate"],
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
        }
        for name, split in manifest.splits.items()
    ]
    total_bytes = sum(split["bytes"] for split in splits)
    whole = {
        "rows": manifest.rows,
        "rejected_rows": manifest.rejected_rows,
        "label_rate": statistics["label_rate"],
        "bytes": total_bytes,
        "bytes_per_row": total_bytes / manifest.rows if manifest.rows else None,
        "shards": sum(split["shards"] for split in splits),
        "compression": manifest.compression,
        "format": manifest.format.name,
        "sources": len(manifest.plan["sources"]),
    }
    keys = ("missing_rate", "minimum", "maximum", "mean", "distinct", "buckets", "collision_rate")
    columns = [
        {"column": name, **{key: values.get(key) for key in keys}} for name, values in statistics["columns"].items()
    ]
    return Overview(
        data=[whole],
        splits=splits,
        columns=columns,
        files=files_by_split(manifest.plan),
        described=describe_files(manifest.plan),
        warnings=warnings_of(manifest),
    )


def files_by_split(plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """Which sources of a manifest's plan give each split its rows, in order."""
    names = [source["name"] for source in plan.get("sources", ())]
    rule = plan.get("split")
    if rule == "days":
        return {"train": names[:-1], "validation": names[-1:], "test": names[-1:]}
    if rule == "tail":
        shares = {"train": True, "validation": plan["validation"] > 0, "test": plan["test"] > 0}
        return {name: names if share else [] for name, share in shares.items()}
    return {name: names if name == rule else [] for name in SPLITS}


def describe_files(plan: Mapping[str, Any]) -> list[str]:
    """Lines that say which files train, validate and test, in order; a split that gets none is left out."""
    files = files_by_split(plan)
    tail = {"train": " (its beginning)", "validation": " (its middle)", "test": " (its end)"}
    days = {"validation": " (its end)", "test": " (its beginning)"}
    which = {"days": days, "tail": tail}.get(str(plan.get("split")), {})
    return [f"{name}: {_listed(names)}{which.get(name, '')}" for name, names in files.items() if names]


def _listed(names: list[str]) -> str:
    labels = [name.partition("?")[0].rsplit("/", 1)[-1] for name in names]
    if len(set(labels)) < len(labels):
        labels = names
    if len(labels) <= 2 * _SHOWN:
        return ", ".join("standard input" if label == "-" else label for label in labels)
    shown = ", ".join([*labels[:_SHOWN], "...", *labels[-_SHOWN:]])
    return f"{shown} ({len(labels)} files)"


def warnings_of(manifest: Manifest) -> list[str]:
    """Lines about splits that nothing can be learned from or judged by, and about columns with many collisions.

    A split that the options asked to leave without rows is left out.
    """
    files = files_by_split(manifest.plan)
    found = [
        f"split {name} has no rows; give it a log that has some, or another --split"
        for name, split in manifest.splits.items()
        if split.rows == 0 and files[name]
    ]
    found += warnings_of_labels(manifest)
    columns = manifest.statistics.get("columns", {})
    crowded = {
        name: values
        for name, values in columns.items()
        if (values.get("collision_rate") or 0) > MANY_COLLISIONS and values["distinct"] > 1
    }
    if crowded:
        found.append(_collisions(manifest.format.name, crowded))
    return found


def warnings_of_labels(manifest: Manifest) -> list[str]:
    """Lines about splits whose rows all have one label."""
    rates = {name: values["label_rate"] for name, values in manifest.statistics.get("splits", {}).items()}
    return [
        f"every row of split {name} has label {rate:.0f}, so there is nothing to tell apart; check the label column "
        "and the order of the files"
        for name, rate in rates.items()
        if rate in (0.0, 1.0)
    ]


def _collisions(format_name: str, crowded: Mapping[str, Mapping[str, Any]]) -> str:
    worst = sorted(crowded, key=lambda name: -crowded[name]["collision_rate"])
    named = ", ".join(f"{name} {crowded[name]['collision_rate']:.1%}" for name in worst[:_SHOWN])
    more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
    distinct = max(values["distinct"] for values in crowded.values())
    buckets = enough_buckets(distinct)
    kaggle = ", or --format criteo-kaggle for the Kaggle log" if format_name == "criteo" and distinct < 200_000 else ""
    return (
        f"more than a tenth of the values share a bucket with another in {len(worst)} "
        f"column{'s' if len(worst) > 1 else ''} ({named}{more}); preprocess with --bucket-sizes {buckets}{kaggle}"
    )


def enough_buckets(distinct: int) -> int:
    """Buckets, a million at least and of one leading digit, in which n values collide in less than a tenth: n / 2B."""
    wanted = max(1_000_000, 6 * distinct)
    unit = 10 ** int(math.log10(wanted))
    return min(-(-wanted // unit) * unit, 2**31 - 1)
