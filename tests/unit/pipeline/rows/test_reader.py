from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from pipeline.errors import ReadFailedError, StorageError
from tests.tiny_data import flip_in_row_group, reader, tiny_columns

ROWS = 77


def assert_is(batch, ids) -> None:
    for got, expected in zip((batch.label, batch.dense, batch.buckets), tiny_columns(ids), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_those_of_the_order(tiny_data, shuffle, threads):
    r = reader(tiny_data, shuffle=shuffle, threads=threads)
    for epoch in (0, 1):
        for start in range(0, ROWS, 9):
            stop = min(start + 9, ROWS)
            batch = r.read(epoch, start, stop)
            assert_is(batch, r.order.row_ids(epoch, start, stop))
            assert (batch.epoch, batch.start, batch.rows, batch.skipped) == (epoch, start, stop - start, 0)
    r.close()


def test_reads_in_any_order_give_the_same_rows(tiny_data):
    r = reader(tiny_data)
    for epoch, start, stop in [(3, 70, 77), (0, 0, 77), (0, 40, 41), (3, 0, 5), (9, 30, 60), (0, 0, 1)]:
        assert_is(r.read(epoch, start, stop), r.order.row_ids(epoch, start, stop))
    r.close()


def test_a_slice_is_part_of_the_batch(tiny_data):
    r = reader(tiny_data)
    part = r.read(0, 10, 30).slice(5, 9)
    assert_is(part, r.order.row_ids(0, 15, 19))
    assert part.start == 15
    r.close()


def test_close_leaves_no_thread(tiny_data):
    before = threading.active_count()
    r = reader(tiny_data)
    r.read(0, 0, 5)
    r.close()
    assert threading.active_count() == before


def test_memory_is_bounded_by_a_few_windows(tiny_data):
    r = reader(tiny_data)
    for start in range(0, ROWS, 7):
        r.read(0, start, start + 7)
        assert len(r._loads) <= 3
    r.close()


def test_damage_names_shard_group_and_remedy(tiny_data):
    shard = tiny_data / "train" / "part-00001.parquet"
    flip_in_row_group(shard, 2)
    r = reader(tiny_data)
    with pytest.raises(StorageError) as caught:
        r.read(0, 0, ROWS)
    message = str(caught.value)
    assert f"{shard}: row group 2 " in message
    assert "alphastream verify" in message
    assert "\n" not in message
    r.close()


def test_a_missing_shard_is_named(tiny_data):
    (tiny_data / "train" / "part-00002.parquet").unlink()
    r = reader(tiny_data)
    with pytest.raises(StorageError, match=r"part-00002.parquet: row group \d"):
        r.read(0, 0, ROWS)
    r.close()


def test_another_shard_in_its_place_is_damage(tiny_data):
    shard = tiny_data / "train" / "part-00000.parquet"
    shard.write_bytes((tiny_data / "validation" / "part-00000.parquet").read_bytes())
    r = reader(tiny_data, shuffle="none")
    with pytest.raises(StorageError, match=r"it has \d+ bytes instead of \d+"):
        r.read(0, 0, 7)
    r.close()


def test_an_outage_is_no_damage_that_could_be_skipped(tiny_data, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    r = reader(tiny_data, on_damage="skip")
    with pytest.raises(ReadFailedError, match=r"part-0000\d.parquet: row group \d .*Input/output error") as caught:
        r.read(0, 0, ROWS)
    assert "see to its disk or network" in str(caught.value)
    assert r.damaged == {}
    r.close()


def test_a_missing_shard_is_damage_and_a_missing_folder_an_outage(tiny_data):
    (tiny_data / "train" / "part-00002.parquet").unlink()
    r = reader(tiny_data, on_damage="skip")
    assert 0 < r.read(0, 0, ROWS).skipped < ROWS
    tiny_data.rename(tiny_data.with_name("away"))
    with pytest.raises(ReadFailedError, match=r"the data folder has no manifest.json: is its disk mounted\?"):
        r.read(7, 0, ROWS)
    r.close()


@pytest.mark.parametrize("shuffle", ["none", "rows"])
def test_skipping_leaves_out_the_damaged_group_alone(tiny_data, shuffle):
    flip_in_row_group(tiny_data / "train" / "part-00001.parquet", 2)
    lost = range(23 + 14, 23 + 19)
    r = reader(tiny_data, shuffle=shuffle, on_damage="skip")
    skipped = 0
    for start in range(0, ROWS, 11):
        ids = r.order.row_ids(4, start, start + 11)
        batch = r.read(4, start, start + 11)
        assert_is(batch, ids[~np.isin(ids, lost)])
        skipped += batch.skipped
    assert skipped == len(lost)
    assert list(r.damaged) == [6]
    assert "part-00001.parquet: row group 2" in r.damaged[6]
    r.close()


def test_stages_count_every_row_once(tiny_data):
    r = reader(tiny_data)
    for start in range(0, ROWS, 7):
        r.read(0, start, start + 7)
    r.close()
    ahead = r.order.window(1, 0).stop  # the window after the last one that was asked for, as far as it was read
    totals = r.stages.totals()
    assert totals.pop("collate")[1] == ROWS
    assert set(totals) == {"source_read", "decompress", "decode", "shuffle"}
    assert all(seconds > 0 and ROWS <= rows <= ROWS + ahead for seconds, rows in totals.values())
