"""A row group that is not the one that was written is never read, and `verify` counts exactly what reading skips."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.parquet import ParquetWriter
from pipeline.preprocess.encoder import PartRecord
from pipeline.shards.manifest import MANIFEST, Manifest, Shard, Split
from pipeline.shards.shard_cache import FOLDER
from pipeline.shards.verify import verify_data
from pipeline.shards.writer import ShardWriter, columns_of
from tests.tiny_data import TINY, flip_in_row_group, reader, same, take, tiny_columns

ROWS = 40
"""Of every row group here; three make a shard."""
FIRST, SECOND = "train/part-00000.parquet", "train/part-00001.parquet"


def rows_from(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A row group for ShardWriter, no value missing."""
    label, dense, buckets = tiny_columns(np.arange(first, first + ROWS))
    return label, dense, np.ones((2, ROWS), np.uint8), buckets


@cache
def first_rows() -> tuple[int, ...]:
    """First rows of row groups that take the same number of bytes, so that their shards can be exchanged."""
    sizes: dict[int, list[int]] = {}
    for first in range(1, 800, ROWS):  # I2 of row 0 would be 0 twice
        label, dense, present, buckets = rows_from(first)
        sink = BytesIO()
        columns = [(label, None), *zip(dense, present, strict=True), *((values, None) for values in buckets)]
        ParquetWriter(sink, columns_of(TINY), "none").write_group(columns)
        sizes.setdefault(len(sink.getvalue()), []).append(first)
    return tuple(max(sizes.values(), key=len))


def write_shard(root: Path, name: str, firsts: Sequence[int]) -> Shard:
    with ShardWriter(root / name, TINY, "none") as writer:
        for first in firsts:
            writer.write_group(*rows_from(first))
        return writer.finish(name)


def write_data(root: Path, *, from_group: int = 0) -> Path:
    """Two shards of three row groups, all equally long."""
    (root / "train").mkdir(parents=True)
    firsts = first_rows()[from_group : from_group + 6]
    shards = write_shard(root, FIRST, firsts[:3]), write_shard(root, SECOND, firsts[3:])
    splits = {"train": Split(shards=shards), "validation": Split(shards=()), "test": Split(shards=())}
    nothing: dict[str, Any] = {"statistics": {}, "rejected_rows": 0, "rejects": (), "plan": {}}
    Manifest(folder=root, format=TINY, splits=splits, compression="none", **nothing).save()
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A data folder of other rows, whose files have the same names and lengths."""
    return write_data(tmp_path / "other", from_group=2)


def as_an_earlier_version_wrote(data: Path) -> Path:
    """The same folder under a manifest without checksums of row groups."""

    def lines(values: dict[str, Any]) -> bytes:
        return ("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in values.items()) + "\n}\n").encode()

    values = json.loads((data / MANIFEST).read_bytes())
    del values["row_group_crc32"], values["sha256"]
    (data / MANIFEST).write_bytes(lines({**values, "sha256": hashlib.sha256(lines(values)).hexdigest()}))
    assert all(shard.row_group_crc32 == () for shard in shards_of(data))
    return data


def shards_of(data: Path) -> tuple[Shard, ...]:
    return Manifest.load(data).splits["train"].shards


def bounds(shard: Shard) -> list[int]:
    """Where the row groups of a shard begin, and where the last one ends."""
    return [4 + sum(shard.row_group_bytes[:group]) for group in range(len(shard.row_groups) + 1)]


def read_skipping(data: Path) -> tuple[int, dict[int, str]]:
    """How many rows of `train` are read with damage skipped, and what was wrong with which row group."""
    rows = reader(data, shuffle="none", on_damage="skip")
    try:
        return rows.read(0, 0, rows.order.rows).rows, rows.damaged
    finally:
        rows.close()


def exchange_shard(data: Path, other: Path) -> None:
    (data / FIRST).write_bytes((other / FIRST).read_bytes())


def swap_shards(data: Path, other: Path) -> None:
    first, second = (data / FIRST).read_bytes(), (data / SECOND).read_bytes()
    (data / FIRST).write_bytes(second)
    (data / SECOND).write_bytes(first)


def exchange_pages_under_the_same_footer(data: Path, other: Path) -> None:
    end = bounds(shards_of(data)[0])[-1]
    (data / FIRST).write_bytes((other / FIRST).read_bytes()[:end] + (data / FIRST).read_bytes()[end:])


def swap_row_groups(data: Path, other: Path) -> None:
    content = (data / FIRST).read_bytes()
    a, b, c, d = bounds(shards_of(data)[0])
    (data / FIRST).write_bytes(content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:])


def cut_and_pad(data: Path, other: Path) -> None:
    content = (data / FIRST).read_bytes()
    end = bounds(shards_of(data)[0])[2] + 10  # within the last row group
    (data / FIRST).write_bytes(content[:end] + bytes(len(content) - end))


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (exchange_shard, {0, 1, 2}),
        (swap_shards, {0, 1, 2, 3, 4, 5}),
        (exchange_pages_under_the_same_footer, {0, 1, 2}),
        (swap_row_groups, {0, 2}),
        (cut_and_pad, {2}),
    ],
)
def test_rows_of_another_shard_of_the_same_size_are_refused(
    data: Path, other: Path, change: Callable[[Path, Path], None], lost: set[int]
) -> None:
    before = {name: (data / name).stat().st_size for name in (FIRST, SECOND)}
    change(data, other)
    assert {name: (data / name).stat().st_size for name in (FIRST, SECOND)} == before
    with pytest.raises(StorageError, match=r"row group \d cannot be read \(it differs from what the manifest says\)"):
        take(data, 24, shuffle="none")
    rows, damaged = read_skipping(data)
    assert set(damaged) == lost
    assert rows == ROWS * (6 - len(lost)) == verify_data(data).readable_rows


def test_a_row_group_is_listed_with_the_crc_of_its_bytes(data: Path) -> None:
    for shard in shards_of(data):
        metadata, content = pq.read_metadata(data / shard.path), (data / shard.path).read_bytes()
        starts = [metadata.row_group(group).column(0).dictionary_page_offset for group in range(3)]
        assert [*starts, starts[2] + shard.row_group_bytes[2]] == bounds(shard)
        expected = [zlib.crc32(content[a:b]) for a, b in zip(bounds(shard), bounds(shard)[1:], strict=False)]
        assert list(shard.row_group_crc32) == expected


def test_a_copy_in_the_cache_that_was_exchanged_is_downloaded_again(data: Path, other: Path, tmp_path: Path) -> None:
    options = {"cache_path": str(tmp_path / "cache"), "shuffle": "none"}
    expected = take(data, 24, shuffle="none")
    assert all(map(same, take(data.as_uri(), 24, **options), expected))
    cached = tmp_path / "cache" / FOLDER / f"{shards_of(data)[0].sha256}.parquet"
    cached.write_bytes((other / FIRST).read_bytes())
    assert all(map(same, take(data.as_uri(), 24, **options), expected))
    assert cached.read_bytes() == (data / FIRST).read_bytes()


def test_a_remote_shard_is_read_whole_or_not_at_all(data: Path, tmp_path: Path) -> None:
    flip_in_row_group(data / FIRST, 1)
    remote = take(data.as_uri(), 12, damaged="skip", cache_path=str(tmp_path / "cache"), shuffle="none")
    assert sum(pair.rows for pair in remote if pair.epoch == 0) == 3 * ROWS
    assert verify_data(data.as_uri()).readable_rows == 3 * ROWS
    assert verify_data(data).readable_rows == 5 * ROWS


def test_a_folder_of_an_earlier_version_is_read_as_before(data: Path, other: Path) -> None:
    expected = take(data, 30)
    assert all(map(same, take(as_an_earlier_version_wrote(data), 30), expected))
    assert verify_data(data).whole
    exchange_shard(data, other)
    assert not verify_data(data).whole


def test_a_part_that_an_earlier_version_encoded_is_listed_without_checksums(data: Path) -> None:
    numbers = {"source": 0, "first_line": 0, "lines": 3, "rows": 3, "rejected_rows": 0, "bytes": 9, "shard_bytes": 5}
    nothing = {"stop_offset": None, "checksum": None}
    earlier: dict[str, Any] = {"key": "0", "split": "train", "sha256": "", "row_groups": [3], "row_group_bytes": [1]}
    shard = PartRecord(**numbers, **nothing, **earlier).shard("train/part-00002.parquet")
    manifest = Manifest.load(data)
    train = Split(shards=(*manifest.splits["train"].shards, shard))
    dataclasses.replace(manifest, splits={**manifest.splits, "train": train}).save()
    assert shards_of(data) == train.shards
    assert [len(each.row_group_crc32) for each in shards_of(data)] == [3, 3, 0]


@pytest.mark.parametrize("earlier", [False, True])
def test_verify_counts_exactly_what_is_read(data: Path, other: Path, earlier: bool) -> None:
    if earlier:
        as_an_earlier_version_wrote(data)
    whole, chance = (data / FIRST).read_bytes(), random.Random(3)
    counted = set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(content))
            match chance.randrange(4):
                case 0:
                    content[at] ^= 1 << chance.randrange(8)
                case 1:
                    content[at : at + 9] = bytes(len(content[at : at + 9]))
                case 2:
                    content[at : at + 90] = (other / FIRST).read_bytes()[at : at + 90]
                case 3 if chance.random() < 0.2:
                    del content[at:]
        (data / FIRST).write_bytes(content)
        rows, _ = read_skipping(data)
        assert verify_data(data).readable_rows == rows
        counted.add(rows)
    (data / FIRST).unlink()
    assert verify_data(data).readable_rows == read_skipping(data)[0] == 3 * ROWS
    assert counted == {ROWS * groups for groups in (3, 4, 5, 6)}
