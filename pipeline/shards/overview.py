"""What a data folder holds, as plain rows that a table or JSON can show, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.schema import SPLITS
from pipeline.shards.manifest import Generation, Manifest

MANY_COLLISIONS = 0.1
"""A column that loses more of its values to collisions is worth a word."""
AT_LEAST, AT_MOST = "_at_least", "_at_most"
"""Endings of the names of two numbers that stand for one that is not known."""
_BOUNDS = tuple(name + end for name in ("distinct", "collision_rate") for end in (AT_LEAST, AT_MOST))
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Three tables, each a list of rows with the same keys; a None is not known or does not apply."""

    data: list[dict[str, Any]]
    """One row: rows, rejected_rows, label_rate, bytes, bytes_per_row, shards, compression, format, sources; see
    `sampling_of` for what is added to it."""
    splits: list[dict[str, Any]]
    """A row a split: split, rows, label_rate, shards, bytes."""
    columns: list[dict[str, Any]]
    """A row a column: column, missing_rate, minimum, maximum, mean, distinct, buckets, collision_rate; and, where the
    two counts are None because nobody has counted across generations, distinct_at_least, distinct_at_most,
    collision_rate_at_least, collision_rate_at_most."""
    generations: list[dict[str, Any]]
    """A row a generation: generation, rows, train, validation, test, rejected_rows, label_rate, bytes, shards, sources,
    created (Unix time in seconds, None for the first)."""
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
        "sources": sum(len(each.plan["sources"]) for each in manifest.generations),
        "generations": len(manifest.generations),
        **sampling_of(manifest),
    }
    keys = ("missing_rate", "minimum", "maximum", "mean", "distinct", "buckets", "collision_rate")
    columns = [
        {"column": name, **dict.fromkeys(keys), **{key: values[key] for key in keys + _BOUNDS if key in values}}
        for name, values in statistics["columns"].items()
    ]
    return Overview(
        data=[whole],
        splits=splits,
        columns=columns,
        generations=[_generation_row(each) for each in manifest.generations],
        files=files_of(manifest),
        described=_described(manifest),
        warnings=warnings_of(manifest),
    )


def sampling_of(manifest: Manifest) -> dict[str, Any]:
    """The share of the training rows of label 0 that were kept (negatives_kept) and how many were not
    (dropped_negatives); nothing of a folder that has all."""
    if manifest.negatives_kept == 1:
        return {}
    dropped = manifest.statistics.get("dropped_negatives", 0)
    return {"negatives_kept": manifest.negatives_kept, "dropped_negatives": dropped}


def _generation_row(generation: Generation) -> dict[str, Any]:
    shards = [shard for split in generation.splits.values() for shard in split.shards]
    return {
        "generation": generation.index,
        "rows": generation.rows,
        **{name: split.rows for name, split in generation.splits.items()},
        "rejected_rows": generation.rejected_rows,
        "label_rate": generation.statistics["label_rate"],
        "bytes": sum(shard.bytes for shard in shards),
        "shards": len(shards),
        "sources": len(generation.plan["sources"]),
        "created": generation.created,
    }


def bounds_of(column: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Between what the number `name` of a column lies; the same twice if it is known."""
    value = column.get(name)
    return (column.get(name + AT_LEAST), column.get(name + AT_MOST)) if value is None else (value, value)


def files_of(manifest: Manifest) -> dict[str, list[str]]:
    """Which sources give each split its rows, generation after generation."""
    found = [files_by_split(each.plan) for each in manifest.generations]
    return {name: [file for each in found for file in each[name]] for name in SPLITS}


def _described(manifest: Manifest) -> list[str]:
    """As `describe_files`, of every generation; the splits of those that were added are described together."""
    first, *others = manifest.generations
    lines = describe_files(first.plan)
    files = [files_by_split(each.plan) for each in others]
    for name in SPLITS:
        if added := [file for each in files for file in each[name]]:
            lines.append(f"{name}, added since: {_listed(added)}")
    return lines


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
    files = files_of(manifest)
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
        if (bounds_of(values, "collision_rate")[0] or 0) > MANY_COLLISIONS and bounds_of(values, "distinct")[0] > 1
    }
    if crowded:
        found.append(_collisions(manifest.format.name, crowded))
    return found


def warnings_of_labels(data: Manifest | Generation) -> list[str]:
    """Lines about splits of a folder, or of one generation of it, whose rows all have one label."""
    rates = {name: values["label_rate"] for name, values in data.statistics.get("splits", {}).items()}
    return [
        f"every row of split {name} has label {rate:.0f}, so there is nothing to tell apart; check the label column "
        "and the order of the files"
        for name, rate in rates.items()
        if rate in (0.0, 1.0)
    ]


def warnings_of_addition(manifest: Manifest, added: Generation | None) -> list[str]:
    """Lines about the generation that was `added` to a folder, where they do not hold of all of the folder."""
    lines = [] if added is None else warnings_of_labels(added)
    return [f"generation {added.index}: {line}" for line in lines if added and line not in warnings_of_labels(manifest)]


def _collisions(format_name: str, crowded: Mapping[str, Mapping[str, Any]]) -> str:
    rates = {name: bounds_of(values, "collision_rate") for name, values in crowded.items()}
    worst = sorted(crowded, key=lambda name: -rates[name][0])
    exact = all(low == high for low, high in rates.values())
    named = ", ".join(f"{name} {'' if exact else 'at least '}{rates[name][0]:.1%}" for name in worst[:_SHOWN])
    more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
    distinct = max(bounds_of(values, "distinct")[1] for values in crowded.values())
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
