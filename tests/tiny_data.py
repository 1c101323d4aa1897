"""Small data folders whose every cell tells which row it belongs to, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.device import DataConfig, DevicePair, Feed, open_feed
from pipeline.rows import GroupReader, OnDamage, Order, RankShare, RowReader, Shuffle
from pipeline.rows.order import Spans
from pipeline.schema import LogFormat
from pipeline.shards import Compression, Manifest, Shard, ShardWriter, Split
from pipeline.shards.shard_files import LocalShards
from pipeline.stages import StageTotals

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


def reader(
    data: Path,
    *,
    shuffle: Shuffle = "rows",
    threads=2,
    on_damage: OnDamage = "fail",
    split="train",
    table_rows: int | None = None,
    share: RankShare | None = None,
    wanted: Callable[[int, int, int], Spans] | None = None,
) -> RowReader:
    manifest = Manifest.load(data)
    shards = manifest.splits[split].shards
    order = Order([shard.row_groups for shard in shards], seed=5, shuffle=shuffle, window_groups=3)
    stages = StageTotals()
    files = LocalShards(data, shards)
    groups = GroupReader(files, shards, TINY, compression=manifest.compression, table_rows=table_rows, stages=stages)
    encoded = table_rows is not None
    return RowReader(
        groups,
        order,
        TINY,
        threads=threads,
        encoded=encoded,
        on_damage=on_damage,
        share=share,
        wanted=wanted,
        stages=stages,
    )


def flip_in_row_group(path: Path, group: int) -> None:
    """Flips a bit in the data of the last column of a row group."""
    column = pq.read_metadata(path).row_group(group).column(5)
    content = bytearray(path.read_bytes())
    content[
        column.data_page_offset
        + column.total_compressed_size
        - (column.data_page_offset - (column.dictionary_page_offset or column.data_page_offset))
        - 1
    ] ^= 4
    path.write_bytes(content)


CPU = torch.device("cpu")


TABLE_ROWS = 1_000


def feed(data: Path | str, *, position=None, rank=0, ranks=1, device=CPU, **changes: Any) -> Feed:
    config = DataConfig(**{"path": str(data), "batch_rows": 10, "shuffle_row_groups": 3, "seed": 5, **changes})
    return open_feed(
        config, Manifest.load(data), table_rows=TABLE_ROWS, device=device, position=position, rank=rank, ranks=ranks
    )


def take(data: Path | str, count: int, **changes: Any) -> list[DevicePair]:
    with feed(data, **changes) as pairs:
        return list(islice(pairs, count))


def same(a: DevicePair, b: DevicePair) -> bool:
    tensors = all(torch.equal(x.cpu(), y.cpu()) for x, y in zip((*a.b1, *a.b2), (*b.b1, *b.b2), strict=True))
    return tensors and (a.fresh, a.epoch, a.start, a.position) == (b.fresh, b.epoch, b.start, b.position)
