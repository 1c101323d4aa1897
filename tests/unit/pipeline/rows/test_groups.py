from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.rows.groups import GroupReader
from pipeline.shards.manifest import Manifest, Shard
from pipeline.shards.shard_files import LocalShards
from pipeline.stages import StageTotals
from tests.tiny_data import TINY, write_tiny


def write_by_arrow(folder: Path, columns: list[np.ndarray], missing: np.ndarray, **options: Any) -> Shard:
    """A shard of the tiny format as another Parquet writer makes it; `missing` (2, R) are the nulls."""
    arrays = [pa.array(columns[0].astype(np.uint8))]
    arrays += [pa.array(values, mask=mask) for values, mask in zip(columns[1:3], missing, strict=True)]
    arrays += [pa.array(values) for values in columns[3:]]
    names = [TINY.label, *TINY.dense, *TINY.sparse]
    fields = [pa.field(n, a.type, nullable=n in TINY.dense) for n, a in zip(names, arrays, strict=True)]
    path = folder / "part.parquet"
    settings = {"compression": "lz4", "write_statistics": False, "write_page_checksum": True, "store_schema": False}
    pq.write_table(pa.table(arrays, schema=pa.schema(fields)), path, **{**settings, **options})
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    return Shard(
        path=path.name,
        rows=len(columns[0]),
        bytes=path.stat().st_size,
        sha256="",
        row_groups=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(
            sum(group.column(c).total_compressed_size for c in range(group.num_columns)) for group in groups
        ),
    )


def read(
    root: Path, shard: Shard, *, group=0, compression: Any = "lz4", table_rows=None
) -> tuple[np.ndarray, np.ndarray]:
    files = LocalShards(root, (shard,))
    reader = GroupReader(files, (shard,), TINY, compression=compression, table_rows=table_rows, stages=StageTotals())
    rows = shard.row_groups[group]
    label = np.full(rows, 99, np.uint8 if table_rows is None else np.float32)
    values = np.full((5, rows), -99, np.int32)
    reader.read(0, group, label, list(values))
    return label, values


def random_columns(rng: np.random.Generator, rows: int, distinct: int) -> list[np.ndarray]:
    values = rng.integers(-(2**31), 2**31, distinct, dtype=np.int64).astype(np.int32)
    return [rng.integers(0, 2, rows), *(rng.choice(values, rows) for _ in range(5))]


@pytest.mark.parametrize("table_rows", [None, 10_000])
def test_rows_come_in_any_order_asked_for(tmp_path, table_rows):
    rng = np.random.default_rng(7)
    shard = write_by_arrow(tmp_path, random_columns(rng, 900, 40), rng.random((2, 900)) < 0.3)
    label, values = read(tmp_path, shard, table_rows=table_rows)
    order = rng.permutation(900).astype(np.uint32)
    files = LocalShards(tmp_path, (shard,))
    reader = GroupReader(files, (shard,), TINY, compression="lz4", table_rows=table_rows, stages=StageTotals())
    ordered_label, ordered_values = np.full_like(label, 99), np.full_like(values, -99)
    reader.read(0, 0, ordered_label, list(ordered_values), order)
    assert (ordered_label == label[order]).all()
    assert (ordered_values == values[:, order]).all()


@pytest.mark.parametrize("distinct", [1, 2, 3, 5, 9, 17, 100, 300, 1000, 5000, 40_000])
@pytest.mark.parametrize("share_missing", [0.0, 0.3, 0.999, 1.0])
def test_pages_of_another_writer_hold_what_was_written(tmp_path, distinct, share_missing):
    """Dictionaries of 0 to 16 bits, several pages a chunk, runs and packed values, nulls from none to all."""
    rng = np.random.default_rng(distinct)
    rows = 45_003 if distinct > 1000 else 20_011
    columns = random_columns(rng, rows, distinct)
    columns[3][: rows // 2] = columns[3][0]  # long runs
    missing = rng.random((2, rows)) < share_missing
    label, values = read(tmp_path, write_by_arrow(tmp_path, columns, missing))
    np.testing.assert_array_equal(label, columns[0])
    np.testing.assert_array_equal(values[:2], np.where(missing, 0, columns[1:3]))
    np.testing.assert_array_equal(values[2:], columns[3:])


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_own_shards_of_any_length_and_compression(tmp_path, compression, rows):
    write_tiny(tmp_path / "data", {"train": [[rows, rows]]}, compression)
    shard = Manifest.load(tmp_path / "data").splits["train"].shards[0]
    table = pq.read_table(tmp_path / "data" / shard.path)
    for group in (0, 1):
        label, values = read(tmp_path / "data", shard, group=group, compression=compression)
        part = table.slice(group * rows, rows)
        np.testing.assert_array_equal(label, part.column(0))
        for c in range(5):
            np.testing.assert_array_equal(values[c], part.column(c + 1).fill_null(0))


def test_encoded_values_are_what_the_model_takes(tmp_path):
    rng = np.random.default_rng(0)
    columns = random_columns(rng, 5000, 700)
    columns[3:] = [np.abs(column // 2) for column in columns[3:]]
    missing = rng.random((2, 5000)) < 0.2
    label, values = read(tmp_path, write_by_arrow(tmp_path, columns, missing), table_rows=1009)
    np.testing.assert_array_equal(label, columns[0].astype(np.float32))
    for c in range(2):
        positive = np.where(missing[c], 0, np.maximum(columns[c + 1], 0)).astype(np.float32)
        exact = np.log(positive.astype(np.float64) + 1)
        np.testing.assert_array_max_ulp(values[c].view(np.float32), exact.astype(np.float32), maxulp=1)
    for c in range(3):
        np.testing.assert_array_equal(values[2 + c], columns[3 + c].astype(np.float32).astype(np.int64) % 1009)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False},
        {"use_dictionary": ["C1"]},
        {"data_page_version": "2.0"},
        {"dictionary_pagesize_limit": 64},
        {"write_page_checksum": False},
    ],
)
def test_pages_of_another_kind_are_refused(tmp_path, options):
    rng = np.random.default_rng(1)
    shard = write_by_arrow(tmp_path, random_columns(rng, 3000, 500), np.zeros((2, 3000), bool), **options)
    with pytest.raises(StorageError, match="page"):
        read(tmp_path, shard)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    """Page headers and footer carry no checksum: bits all over a shard are flipped, and no row may differ."""
    write_tiny(tmp_path / "data", {"train": [[9, 9]]})
    shard = Manifest.load(tmp_path / "data").splits["train"].shards[0]
    path = tmp_path / "data" / shard.path
    content = path.read_bytes()
    whole = [read(tmp_path / "data", shard, group=g) for g in (0, 1)]
    noticed = 0
    for bit in range(0, 8 * len(content), 17):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for group in (0, 1):
            try:
                found = read(tmp_path / "data", shard, group=group)
            except StorageError:
                noticed += 1
                continue
            for a, b in zip(found, whole[group], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"bit {bit}, row group {group}")
    assert noticed > 0.3 * 2 * 8 * len(content) / 17


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_truncated_shard_is_damage(tiny_data, cut):
    shard = Manifest.load(tiny_data).splits["train"].shards[0]
    path = tiny_data / shard.path
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StorageError, match="bytes instead of"):
        read(tiny_data, shard)


def test_a_manifest_of_another_shard_does_not_fit(tiny_data):
    first, second, *_ = Manifest.load(tiny_data).splits["train"].shards
    with pytest.raises(StorageError, match="bytes instead of"):
        read(tiny_data, dataclasses.replace(second, path=first.path))
    with pytest.raises(StorageError, match="do not fit together"):
        read(tiny_data, dataclasses.replace(first, row_groups=(8, 7, 7, 2)))
    with pytest.raises(StorageError, match="page"):
        read(tiny_data, dataclasses.replace(first, row_group_bytes=(600, 600, 600, 600), row_group_crc32=()))
