from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.rows.order import RankShare, RowPosition
from pipeline.rows.pairs import BatchPair, Gap, HostPairs, PairSpans
from pipeline.rows.reader import RowReader
from tests.tiny_data import flip_in_row_group, reader, write_tiny

ROWS = 77


def ids_of(batch) -> list[int]:
    return (batch.dense[0] + 3).tolist()


def take(
    data: Path,
    count: int,
    *,
    position=None,
    on_damage: Any = "fail",
    shuffle: Any = "rows",
    rank=0,
    ranks=1,
    **spans: Any,
):
    share, cut = RankShare(rank=rank, ranks=ranks), PairSpans(rows=ROWS, **spans)
    position = position or RowPosition()
    r = reader(data, on_damage=on_damage, shuffle=shuffle, share=share, wanted=cut.wanted(share, position))
    pairs = HostPairs(r, cut, position)
    try:
        return list(islice(pairs, count))
    finally:
        r.close()


def sequence(data: Path, epoch: int) -> list[int]:
    r = reader(data)
    r.close()
    return r.order.row_ids(epoch, 0, ROWS).tolist()


@pytest.mark.parametrize("probe", [1, 4, 10])
def test_sliding_follows_its_definition(tiny_data, probe):
    spans = PairSpans(rows=ROWS, batch_rows=10, probe_rows=probe)
    assert spans.steps_per_epoch == 8
    pairs = take(tiny_data, 16, batch_rows=10, probe_rows=probe)
    for number, pair in enumerate(pairs):
        epoch, t = divmod(number, 8)
        rows = sequence(tiny_data, epoch)
        assert ids_of(pair.b2) == rows[10 * t : 10 * t + 10]
        if t < 7:
            assert pair.fresh
            assert ids_of(pair.b1) == rows[10 * t + 10 : 10 * t + 10 + probe]
            assert pair.position == RowPosition(epoch=epoch, row=10 * t + 10)
        else:
            assert not pair.fresh
            assert ids_of(pair.b1) == rows[:probe]
            assert pair.position == RowPosition(epoch=epoch + 1)


def test_disjoint_follows_its_definition(tiny_data):
    pairs = take(tiny_data, 8, batch_rows=12, probe_rows=6, pairing="disjoint")
    assert PairSpans(rows=ROWS, batch_rows=12, probe_rows=6, pairing="disjoint").steps_per_epoch == 5
    rows = sequence(tiny_data, 0)
    for t, pair in enumerate(pairs[:4]):
        assert ids_of(pair.b1) == rows[18 * t : 18 * t + 6]
        assert ids_of(pair.b2) == rows[18 * t + 6 : 18 * t + 18]
        assert pair.fresh
    # 5 rows are left: a third of them, rounded down, is the probe.
    assert ids_of(pairs[4].b1) == rows[72:73]
    assert ids_of(pairs[4].b2) == rows[73:]
    assert pairs[4].position == RowPosition(epoch=1)
    assert ids_of(pairs[5].b1) == sequence(tiny_data, 1)[:6]


def test_a_single_row_left_over_is_trained_on(tiny_data):
    """77 = 4 · 19 + 1: too little to share out, so the probe is the epoch's first, and stale."""
    last = take(tiny_data, 5, batch_rows=10, probe_rows=9, pairing="disjoint")[4]
    rows = sequence(tiny_data, 0)
    assert (ids_of(last.b2), ids_of(last.b1), last.fresh) == (rows[76:], rows[:9], False)


@pytest.mark.parametrize(("pairing", "probe"), [("sliding", 10), ("sliding", 3), ("disjoint", 10), ("disjoint", 13)])
def test_each_row_once_an_epoch_and_no_row_in_both(tiny_data, pairing, probe):
    spans = PairSpans(rows=ROWS, batch_rows=10, probe_rows=probe, pairing=pairing)
    pairs = take(tiny_data, spans.steps_per_epoch, batch_rows=10, probe_rows=probe, pairing=pairing)
    used: list[int] = []
    for pair in pairs:
        assert not set(ids_of(pair.b1)) & set(ids_of(pair.b2))
        used += ids_of(pair.b2) + (ids_of(pair.b1) if pairing == "disjoint" and pair.fresh else [])
    assert sorted(used) == list(range(ROWS))


@pytest.mark.parametrize(("pairing", "probe"), [("sliding", 10), ("sliding", 3), ("disjoint", 10), ("disjoint", 13)])
@pytest.mark.parametrize("row", [0, 10, 13, 76])
def test_the_position_after_some_pairs_is_where_they_lead(pairing, probe, row):
    spans = PairSpans(rows=ROWS, batch_rows=10, probe_rows=probe, pairing=pairing)
    start = position = RowPosition(epoch=3, row=row)
    for pairs in range(30):
        assert spans.position_after(start, pairs) == position
        end = spans.at(position.row)[1][1]
        position = RowPosition(epoch=position.epoch, row=end) if end < ROWS else RowPosition(epoch=position.epoch + 1)


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_what_lies_at_a_position_depends_on_nothing_else(tiny_data, pairing):
    """Backwards, a memory of what was read before would show."""
    for group in (0, 1):
        flip_in_row_group(tiny_data / "train" / "part-00001.parquet", group)
    spans = PairSpans(rows=ROWS, batch_rows=5, probe_rows=5, pairing=pairing)
    places = [spans.position_after(RowPosition(), k) for k in range(2 * spans.steps_per_epoch)]

    def found(places: list[RowPosition]) -> list[BatchPair | Gap]:
        r = reader(tiny_data, on_damage="skip", shuffle="none")
        try:
            pairs = HostPairs(r, spans, RowPosition())
            return [pairs.at(place) for place in places]
        finally:
            r.close()

    forwards, backwards = found(places), found(places[::-1])[::-1]
    assert [type(one) for one in forwards] == [type(other) for other in backwards]
    assert {type(one) for one in forwards} == {BatchPair, Gap}
    for one, other in zip(forwards, backwards, strict=True):
        if isinstance(one, BatchPair) and isinstance(other, BatchPair):
            assert same(one, other)
        else:
            assert one == other


def same(a: BatchPair, b: BatchPair) -> bool:
    return all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in ((a.b1, b.b1), (a.b2, b.b2))
        for name in ("label", "dense", "buckets", "epoch", "start")
    ) and (a.fresh, a.position, a.skipped) == (b.fresh, b.position, b.skipped)


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
@pytest.mark.parametrize("on_damage", ["fail", "skip"])
def test_resume_from_any_position_gives_the_same_pairs(tiny_data, pairing, on_damage):
    if on_damage == "skip":
        flip_in_row_group(tiny_data / "train" / "part-00001.parquet", 0)
        flip_in_row_group(tiny_data / "train" / "part-00002.parquet", 3)
    options: dict[str, Any] = {"batch_rows": 6, "probe_rows": 5, "pairing": pairing, "on_damage": on_damage}
    whole = take(tiny_data, 40, **options)
    for at in (1, 5, 11, 12, 13, 20, 26):
        rest = take(tiny_data, 5, position=whole[at - 1].position, **options)
        assert all(same(a, b) for a, b in zip(rest, whole[at : at + 5], strict=True))


def test_ranks_share_every_batch_of_one_sequence(tiny_data):
    options: dict[str, Any] = {"batch_rows": 10, "probe_rows": 7}
    whole = take(tiny_data, 9, **options)
    shares = [take(tiny_data, 9, rank=rank, ranks=3, **options) for rank in range(3)]
    for pair, *parts in zip(whole, *shares, strict=True):
        assert [row for part in parts for row in ids_of(part.b2)] == ids_of(pair.b2)
        assert [row for part in parts for row in ids_of(part.b1)] == ids_of(pair.b1)
        assert {part.position for part in parts} == {pair.position}
        assert max(part.b2.rows for part in parts) - min(part.b2.rows for part in parts) <= 1


def assert_shares(whole: list[BatchPair], shares: list[list[BatchPair]]) -> None:
    """That the shares of all ranks are the pairs `whole`, and each rank knows where its own lie."""
    for pair, *parts in zip(whole, *shares, strict=True):
        for name in ("b1", "b2"):
            batch, each = getattr(pair, name), [getattr(part, name) for part in parts]
            for column in ("label", "dense", "buckets"):
                union = np.concatenate([getattr(share, column) for share in each], axis=-1)
                np.testing.assert_array_equal(union, getattr(batch, column))
            starts = [getattr(part, f"{name}_start") for part in parts]
            assert starts == np.cumsum([0, *(share.rows for share in each)])[:-1].tolist()
            assert {getattr(part, f"{name}_rows") for part in parts} == {batch.rows}
            assert max(share.rows for share in each) - min(share.rows for share in each) <= 1
        assert [part.b2.start for part in parts] == [part.start + part.b2_start for part in parts]
        alike = {(part.fresh, part.position, part.skipped, part.start) for part in parts}
        assert alike == {(pair.fresh, pair.position, pair.skipped, pair.start)}


SHARED: list[dict[str, Any]] = [
    {"batch_rows": 10, "probe_rows": 10},
    {"batch_rows": 13, "probe_rows": 4},
    {"batch_rows": 4, "probe_rows": 3},  # fewer rows than ranks
    {"batch_rows": 38, "probe_rows": 38},  # of one row last
    {"batch_rows": 11, "probe_rows": 6, "pairing": "disjoint"},
    {"batch_rows": 3, "probe_rows": 7, "pairing": "disjoint"},
]
SHUFFLES = ["none", "files", "rows"]


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("options", SHARED)
@pytest.mark.parametrize(("ranks", "turn"), [(2, 0), (3, 1), (5, 2)])
def test_shares_of_any_number_of_ranks_are_the_same_pairs(tiny_data, ranks, turn, options, damaged):
    """Two epochs, from the start and from the middle, where another number of ranks was at work until then.

    Every number of ranks meets every way to cut, and each of both, by turns, every way to shuffle.
    """
    shuffle = SHUFFLES[(turn + SHARED.index(options) + damaged) % 3]
    if damaged:
        flip_in_row_group(tiny_data / "train" / "part-00001.parquet", 0)
        flip_in_row_group(tiny_data / "train" / "part-00002.parquet", 1)
    options = {**options, "shuffle": shuffle, "on_damage": "skip"}
    steps = (
        2
        * PairSpans(
            rows=ROWS, **{k: v for k, v in options.items() if k not in ("shuffle", "on_damage")}
        ).steps_per_epoch
    )
    whole = take(tiny_data, steps - 2, **options)
    assert damaged == any(pair.skipped for pair in whole)
    assert_shares(whole, [take(tiny_data, steps - 2, rank=rank, ranks=ranks, **options) for rank in range(ranks)])
    at = len(whole) // 2
    position, rest = whole[at - 1].position, len(whole) - at
    resumed = [take(tiny_data, rest, position=position, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    assert_shares(whole[at:], resumed)


def test_a_rank_holds_its_own_rows_alone(tiny_data):
    spans = PairSpans(rows=ROWS, batch_rows=10, probe_rows=10)
    held = []
    for rank in range(5):
        share = RankShare(rank=rank, ranks=5)
        r = reader(tiny_data, share=share, wanted=spans.wanted(share, RowPosition()))
        r.read_share(0, 0, 10)
        load = r._loads[0, 0]
        assert load.spans is not None
        held.append(load.values.shape[1])
        r.close()
    assert sum(held) == r.order.window(0, 0).stop


@pytest.mark.parametrize("shuffle", ["none", "rows"])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_rows": 10, "probe_rows": 10},
        {"batch_rows": 9, "probe_rows": 5},
        {"batch_rows": 8, "probe_rows": 5, "pairing": "disjoint"},
    ],
)
@pytest.mark.parametrize("row", [0, 7, 23])
def test_a_rank_reads_no_window_more_often_than_one_alone(tiny_data, monkeypatch, shuffle, options, row):
    """From row 7 or 23 on batches begin elsewhere, as after a resume with another batch size, until the epoch ends."""
    started: list[tuple[int, int]] = []
    start = RowReader._start
    monkeypatch.setattr(
        RowReader,
        "_start",
        lambda self, window, spans: started.append((window.epoch, window.index)) or start(self, window, spans),
    )
    reads = []
    for ranks in (1, 3):
        take(tiny_data, 15, position=RowPosition(row=row), shuffle=shuffle, rank=ranks // 2, ranks=ranks, **options)
        reads.append(started.copy())
        started.clear()
    assert reads[1] == reads[0]


def test_what_was_not_expected_is_read_all_the_same(tiny_data):
    share = RankShare(rank=1, ranks=3)
    r = reader(
        tiny_data, share=share, wanted=PairSpans(rows=ROWS, batch_rows=9, probe_rows=9).wanted(share, RowPosition())
    )
    ids = r.order.row_ids(0, 20, 41)
    for _ in range(2):
        found = r.read_share(0, 20, 41)
        assert (found.start, found.rows, ids_of(found.part)) == (7, 21, ids[7:14].tolist())
        assert ids_of(r.read(0, 20, 41)) == ids.tolist()
    assert ids_of(r.read_share(1, 9, 18).part) == r.order.row_ids(1, 12, 15).tolist()
    r.close()


def test_skipped_rows_are_accounted_for_exactly(tiny_data):
    """Batches vanish whose rows are all damaged: without shuffling, rows 23..36 are lost."""
    for group in (0, 1):
        flip_in_row_group(tiny_data / "train" / "part-00001.parquet", group)
    pairs = take(tiny_data, 17, batch_rows=5, probe_rows=5, on_damage="skip", shuffle="none")
    first_epoch = [pair for pair in pairs if pair.b2.epoch == 0]
    trained = [row for pair in first_epoch for row in ids_of(pair.b2)]
    assert trained == [*range(23), *range(37, 77)]
    assert sum(pair.skipped for pair in first_epoch) == 14
    for pair in pairs:
        assert pair.b1.rows
        assert pair.b2.rows
        assert not set(ids_of(pair.b1)) & set(ids_of(pair.b2))
    assert [ids_of(pair.b1) for pair in first_epoch if not pair.fresh] == [[0, 1, 2, 3, 4]]
    ahead_of_the_gap = next(pair for pair in first_epoch if ids_of(pair.b2) == [20, 21, 22])
    assert ids_of(ahead_of_the_gap.b1) == [37, 38, 39]


def test_a_gap_at_the_start_is_probed_from_behind_it(tiny_data):
    flip_in_row_group(tiny_data / "train" / "part-00000.parquet", 1)
    first, *_, last = take(tiny_data, 11, batch_rows=7, probe_rows=7, on_damage="skip", shuffle="none")
    assert (ids_of(first.b2), ids_of(first.b1), first.fresh) == ([*range(7)], [*range(14, 21)], True)
    assert first.position == RowPosition(row=7)
    assert last.position.epoch == 1


def test_damage_everywhere_ends_the_pairs(tmp_path):
    data = write_tiny(tmp_path / "data", {"train": [[7] * 11]})
    for group in range(11):
        flip_in_row_group(data / "train" / "part-00000.parquet", group)
    with pytest.raises(StorageError, match="damaged row groups leave no two batches"):
        take(data, 1, batch_rows=7, probe_rows=7, on_damage="skip")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 19, "batch_rows": 10, "probe_rows": 10}, "19 rows are too few .* data.batch_rows to 9"),
        ({"rows": 99, "batch_rows": 10, "probe_rows": 11}, "data.probe_rows = 11 .* data.batch_rows = 10"),
    ],
)
def test_pairs_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        PairSpans(**options)
