from __future__ import annotations

import sys
import threading
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.device.config import DataConfig
from pipeline.device.feed import DevicePair
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.opening import open_rows
from pipeline.errors import InputError, StorageError
from pipeline.rows.order import Order, RowPosition
from pipeline.shards.manifest import Manifest
from tests.tiny_data import CPU, TABLE_ROWS, feed, flip_in_row_group, same, take, tiny_columns

ROWS = 77


def test_pairs_hold_the_rows_of_the_order_as_model_inputs(tiny_data):
    groups = [shard.row_groups for shard in Manifest.load(tiny_data).splits["train"].shards]

    order = Order(groups, seed=5, shuffle="rows", window_groups=3)
    for t, pair in enumerate(take(tiny_data, 8)):
        ids = order.row_ids(0, 10 * t, min(10 * t + 10, ROWS))
        label, dense, buckets = tiny_columns(ids)
        np.testing.assert_array_equal(pair.b2.label.numpy(), label)
        np.testing.assert_allclose(pair.b2.dense.numpy().T, np.log1p(np.maximum(dense, 0)), rtol=1e-6)
        np.testing.assert_array_equal(pair.b2.ids.numpy(), buckets.astype(np.float32).astype(np.int32) % TABLE_ROWS)
        assert (pair.start, pair.rows, pair.epoch) == (10 * t, len(ids), 0)


@pytest.mark.parametrize("probe", [None, 4])
def test_a_sliding_probe_is_the_next_batch(tiny_data, probe):
    pairs = take(tiny_data, 17, probe_rows=probe)
    for pair, following in pairwise(pairs):
        if pair.fresh:
            rows = pair.b1.rows
            assert torch.equal(pair.b1.ids, following.b2.ids[:, :rows])
            assert torch.equal(pair.b1.dense, following.b2.dense[:rows])


@pytest.mark.parametrize("prefetch", [1, 7])
@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_the_state_is_that_of_the_last_pair_handed_out(tiny_data, prefetch, pairing):
    options = {"prefetch_batches": prefetch, "pairing": pairing}
    whole = take(tiny_data, 20, **options)
    for cut in (0, 1, 6, 13):
        with feed(tiny_data, **options) as first:
            got = list(islice(first, cut))
            state = first.state_dict()
        with feed(tiny_data, **options) as second:
            next(second)
            second.load_state_dict(state)
            assert second.position == first.position
            got += list(islice(second, 20 - cut))
        assert all(same(a, b) for a, b in zip(got, whole, strict=True))


def test_sequence_does_not_depend_on_batch_threads_prefetch_or_ranks(tiny_data):
    def row_numbers(parts: list[list[DevicePair]]) -> list[int]:
        return [int(row) for steps in zip(*parts, strict=True) for pair in steps for row in pair.b2.ids[1]]

    reference = row_numbers([take(tiny_data, 16)])
    for changes in (
        {"batch_rows": 7},
        {"batch_rows": 31, "read_threads": 1},
        {"prefetch_batches": 1, "read_threads": 5},
    ):
        count = 2 * -(-ROWS // changes.get("batch_rows", 10))
        assert row_numbers([take(tiny_data, count, **changes)]) == reference
    assert row_numbers([take(tiny_data, 16, rank=rank, ranks=4) for rank in range(4)]) == reference


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("pairing", ["sliding", "disjoint", "held_out"])
def test_every_rank_is_told_the_same_but_for_where_its_share_lies(tiny_data, pairing, ranks):
    """Batches of four rows: with five ranks some shares are empty, with three or five the last batch's are."""
    options: dict[str, Any] = {"batch_rows": 4, "probe_rows": 3, "pairing": pairing}
    whole = take(tiny_data, 60, **options)
    shares = [take(tiny_data, 60, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    for pair, *parts in zip(whole, *shares, strict=True):
        assert (pair.b1_start, pair.b2_start, pair.b1_rows, pair.rows) == (0, 0, pair.b1.rows, pair.b2.rows)
        for part in parts:
            names = ("b1_rows", "b2_rows", "rows", "fresh", "epoch", "start", "position", "skipped")
            assert [getattr(part, name) for name in names] == [getattr(pair, name) for name in names]
            for name in ("b1", "b2"):
                share, batch, start = getattr(part, name), getattr(pair, name), getattr(part, f"{name}_start")
                of_batch = slice(start, start + share.rows)
                assert torch.equal(share.dense, batch.dense[of_batch])
                assert torch.equal(share.ids, batch.ids[:, of_batch])
                assert torch.equal(share.label, batch.label[of_batch])
        for name in ("b1", "b2"):
            assert sum(getattr(part, name).rows for part in parts) == getattr(pair, name).rows
    assert any(part.b2.rows == 0 for share in shares for part in share) == (ranks > min(pair.rows for pair in whole))


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("damaged", [False, True])
def test_ranks_share_the_batches_of_an_evaluation(tiny_data, ranks, damaged):
    """77 rows in batches of eight leave five; from row 72 on, in batches of two, some ranks have none."""
    if damaged:
        flip_in_row_group(tiny_data / "train" / "part-00001.parquet", 1)
    for first_row, batch_rows in ((0, 8), (72, 2)):

        def batches(first_row=first_row, batch_rows=batch_rows, **share: Any) -> list[ModelInputs]:
            options: dict[str, Any] = {
                "table_rows": TABLE_ROWS,
                "device": CPU,
                "split": "train",
                "first_row": first_row,
            }
            config = DataConfig(path=str(tiny_data), damaged="skip")
            return list(open_rows(config, Manifest.load(tiny_data), batch_rows=batch_rows, **options, **share))

        whole, shares = batches(), [batches(rank=rank, ranks=ranks) for rank in range(ranks)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert torch.equal(torch.cat([part.dense for part in parts]), batch.dense)
            assert torch.equal(torch.cat([part.ids for part in parts], dim=1), batch.ids)
            assert torch.equal(torch.cat([part.label for part in parts]), batch.label)
            assert max(part.rows for part in parts) - min(part.rows for part in parts) <= 1


def evaluation_batches(data: Path, **options: Any) -> list[ModelInputs]:
    """The validation rows, ten of them, in batches of two; damage is skipped."""
    config, manifest = DataConfig(path=str(data), damaged="skip"), Manifest.load(data)
    rows: dict[str, Any] = {"table_rows": TABLE_ROWS, "device": CPU, "split": "validation", "batch_rows": 2}
    return list(open_rows(config, manifest, **rows, **options))


def test_a_batch_that_damage_leaves_no_row_is_none_alone_and_an_empty_share_for_each_of_several_ranks(tiny_data):
    """The first six rows: ranks whose copy is whole must hear of it."""
    flip_in_row_group(tiny_data / "validation" / "part-00000.parquet", 0)
    assert [batch.rows for batch in evaluation_batches(tiny_data)] == [2, 2]
    for rank in (0, 1):
        assert [batch.rows for batch in evaluation_batches(tiny_data, rank=rank, ranks=2)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_split_that_damage_leaves_no_row_is_an_error_of_storage(tiny_data, ranks):
    for group in (0, 1):
        flip_in_row_group(tiny_data / "validation" / "part-00000.parquet", group)
    with pytest.raises(
        StorageError, match=f"{tiny_data}: damage leaves none of the rows 0 to 9 of .*'validation'.*verify"
    ):
        evaluation_batches(tiny_data, ranks=ranks)
    assert evaluation_batches(tiny_data, ranks=ranks, first_row=10) == []  # nothing is asked for, and nothing missing


def test_position_opens_the_feed_there(tiny_data):
    whole = take(tiny_data, 12)
    rest = take(tiny_data, 3, position=RowPosition(epoch=1, row=10))
    assert all(same(a, b) for a, b in zip(rest, whole[9:12], strict=True))


@pytest.mark.parametrize("position", [RowPosition(row=ROWS), RowPosition(epoch=-1), RowPosition(row=-1)])
def test_a_position_outside_the_data_is_refused(tiny_data, position):
    with pytest.raises(InputError, match="not in this data of 77 rows"):
        feed(tiny_data, position=position)


def test_an_error_of_a_thread_arrives_as_it_was_raised_and_ends_the_threads(tiny_data):
    before = threading.active_count()
    shard = tiny_data / "train" / "part-00002.parquet"
    flip_in_row_group(shard, 1)
    pairs = feed(tiny_data)
    with pytest.raises(StorageError) as caught:
        list(islice(pairs, 8))
    assert f"{shard}: row group 1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert threading.active_count() == before


def test_close_ends_every_thread_even_with_a_full_queue(tiny_data):
    before = threading.active_count()
    pairs = feed(tiny_data, prefetch_batches=2)
    next(pairs)
    assert threading.active_count() > before
    pairs.close()
    pairs.close()
    assert threading.active_count() == before


def test_queue_is_bounded_by_the_prefetch_depth(tiny_data):
    with feed(tiny_data, prefetch_batches=3) as pairs:
        assert pairs.queued_batches() == 0
        for _ in range(10):
            next(pairs)
            assert 0 <= pairs.queued_batches() <= 3


def test_skipped_rows_survive_a_resume(tiny_data):
    flip_in_row_group(tiny_data / "train" / "part-00001.parquet", 2)
    with feed(tiny_data, damaged="skip") as whole:
        list(islice(whole, 16))
        assert whole.skipped_rows == 2 * 5
    with feed(tiny_data, damaged="skip") as first:
        list(islice(first, 6))
    with feed(tiny_data, damaged="skip") as second:
        second.load_state_dict(first.state_dict())
        list(islice(second, 10))
        assert second.state_dict() == whole.state_dict()


def test_every_stage_counts_every_row_once(tiny_data):
    with feed(tiny_data) as pairs:
        list(islice(pairs, 8 * 10))
        stages = pairs.stage_totals()
    assert set(stages) == {"source_read", "decompress", "decode", "shuffle", "collate", "transfer"}
    # Ten epochs; beside them what was read ahead, and each epoch's first probe once more, which its last pair needs.
    assert all(seconds > 0 and 10 * ROWS <= rows < 14 * ROWS for seconds, rows in stages.values())


def test_evaluation_rows_come_in_file_order(tiny_data):
    config, manifest = DataConfig(path=str(tiny_data)), Manifest.load(tiny_data)
    before = threading.active_count()
    for limit, expected in ((None, 77), (20, 20), (500, 77)):
        options: dict[str, Any] = {"table_rows": TABLE_ROWS, "device": CPU, "split": "train", "batch_rows": 8}
        batches = list(open_rows(config, manifest, **options, limit_rows=limit))
        assert torch.cat([batch.ids[1] for batch in batches]).tolist() == [i % 1000 for i in range(expected)]
        assert {batch.rows for batch in batches[:-1]} == {8}
    assert threading.active_count() == before


def test_a_split_without_rows_is_named(tiny_data):
    config, manifest = DataConfig(path=str(tiny_data)), Manifest.load(tiny_data)
    rows = open_rows(config, manifest, table_rows=9, device=CPU, split="test", batch_rows=8)
    with pytest.raises(InputError, match="no rows in split 'test'"):
        next(rows)


def test_a_missing_dali_is_named_with_its_remedy_before_anything_is_read(tiny_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError) as caught:
        feed(tiny_data, feed="dali")
    message = str(caught.value)
    assert message.startswith('data.feed = "dali" needs NVIDIA DALI')
    assert "pip install 'alphastream[dali]'" in message
    assert "\n" not in message
    take(tiny_data, 1)  # the ring needs none of it


@pytest.mark.gpu
@pytest.mark.parametrize("prefetch", [1, 4])
def test_cuda_gives_the_pairs_of_the_cpu(tiny_data, prefetch):
    """Hundreds of pairs through few slots: a slot refilled while its copy is in flight would mix rows."""
    cuda = torch.device("cuda", 0)
    options = {"prefetch_batches": prefetch, "batch_rows": 5}
    with feed(tiny_data, device=cuda, **options) as on_device, feed(tiny_data, **options) as on_host:
        for a, b in islice(zip(on_device, on_host, strict=True), 400):
            assert a.b2.label.device == cuda
            for x, y in zip((*a.b1, *a.b2), (*b.b1, *b.b2), strict=True):
                torch.testing.assert_close(x.cpu(), y, rtol=3e-7, atol=0)
