"""Small data folders whose every cell tells which row it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.schema import LogFormat
from pipeline.shards import Compression, Manifest, Shard, ShardWriter, Split

TINY = LogFormat(
    name="tiny",
    columns=("click", "I1", "I2", "C1", "C2", "C3"),
    label="click",
    dense=("I1", "I2"),
    sparse=("C1", "C2", "C3"),
    bucket_sizes=(40_000_000, 1000, 7),
)


def tiny_columns(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """label (R,), dense (2, R) with 0 where missing, buckets (3, R) of rows `ids`: what every reader must give."""
    dense = np.stack([ids - 3, np.where(ids % 3 == 0, 0, ids * 7)]).astype(np.int32)
    buckets = np.stack([ids + 30_000_000, ids % 1000, ids % 7]).astype(np.int32)
    return (ids % 2).astype(np.uint8), dense, buckets


def write_tiny(root: Path, splits: dict[str, Sequence[Sequence[int]]], compression: Compression = "lz4") -> Path:
    """A data folder; `splits` gives for each split the rows of every row group of every shard."""
    written = {}
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        shards: list[Shard] = []
        first = 0
        for number, groups in enumerate(splits.get(split, ())):
            name = f"{split}/part-{number:05d}.parquet"
            with ShardWriter(root / name, TINY, compression) as writer:
                for rows in groups:
                    ids = np.arange(first, first + rows)
                    label, dense, buckets = tiny_columns(ids)
                    present = np.stack([np.ones(rows), ids % 3 != 0]).astype(np.uint8)
                    dense[present == 0] = -99  # what lies under a null must not matter
                    writer.write_group(label, dense, present, buckets)
                    first += rows
                shards.append(writer.finish(name))
        written[split] = Split(shards=tuple(shards))
    Manifest(
        folder=root,
        format=TINY,
        splits=written,
        compression=compression,
        statistics={},
        rejected_rows=0,
        rejects=(),
        plan={},
    ).save()
    return root


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Three training shards of 4 + 3 + 5 row groups of uneven length (77 rows), 10 validation rows."""
    train = [[7, 7, 7, 2], [7, 7, 5], [7, 7, 7, 7, 7]]
    return write_tiny(tmp_path / "data", {"train": train, "validation": [[6, 4]]})
