"""What a data folder holds, as plain rows that a table or JSON can show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Three tables, each a list of rows with the same keys; a None is not known or does not apply."""

    data: list[dict[str, Any]]
    """One row: rows, rejected_rows, label_rate, bytes, bytes_per_row, shards, compression, format, sources."""
    splits: list[dict[str, Any]]
    """A row a split: split, rows, label_rate, shards, bytes."""
    columns: list[dict[str, Any]]
    """A row a column: column, missing_rate, minimum, maximum, mean, distinct, buckets, collision_rate."""


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
    return Overview(data=[whole], splits=splits, columns=columns)
