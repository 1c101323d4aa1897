"""The pairing `held_out`: B1 of rows that are never trained on, B2 of all others once an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.device import DevicePair
from pipeline.errors import InputError, StorageError
from pipeline.rows import RowPosition
from pipeline.rows import pairs as pairs_module
from pipeline.rows.selection import hold_out
from pipeline.shards import Manifest
from tests.tiny_data import feed, flip_in_row_group, same, take, write_tiny

ROWS = 77
OPTIONS: dict[str, Any] = {"pairing": "held_out", "held_out_share": 0.15}
HELD = round(0.15 * ROWS)


@pytest.fixture(scope="module")
def many_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many row groups that whole ones are held out, and more of them than a window has."""
    groups = [[3] * 40] * 8 + [[3] * 9 + [1]]
    return write_tiny(tmp_path_factory.mktemp("many") / "data", {"train": groups})


def ids_of(inputs: Any) -> list[int]:
    """Rows by their place in file order, which the second sparse column is of fewer than 1,000."""
    return inputs.ids[1].tolist()


def counted(pairs: list[DevicePair]) -> tuple[Counter[int], Counter[int]]:
    """How often each row was trained on, and probed with."""
    return (
        Counter(row for pair in pairs for row in ids_of(pair.b2)),
        Counter(row for pair in pairs for row in ids_of(pair.b1)),
    )


def epoch_of(data: Path, epochs: int = 1, **options: Any) -> list[DevicePair]:
    with feed(data, **OPTIONS | options) as pairs:
        assert pairs.steps_per_epoch is not None
        return list(islice(pairs, epochs * pairs.steps_per_epoch))


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
@pytest.mark.parametrize("batch", [4, 13])
def test_what_probes_is_never_trained_on_and_all_the_rest_once_an_epoch(tiny_data: Path, shuffle: str, batch: int):
    held: set[int] = set()
    for epoch in range(3):
        pairs = [pair for pair in epoch_of(tiny_data, 3, shuffle=shuffle, batch_rows=batch) if pair.epoch == epoch]
        trained, probed = counted(pairs)
        assert set(trained.values()) == {1}
        assert len(trained) == ROWS - HELD
        held |= set(probed)
        assert not held & set(trained)
        assert all(pair.fresh for pair in pairs)
    assert len(held) == HELD
    assert set(trained) | held == set(range(ROWS))


@pytest.mark.parametrize("shuffle", ["none", "files", "rows"])
def test_whole_groups_are_read_in_turn_without_end(many_groups: Path, shuffle: str):
    options = {"held_out_share": 0.1, "shuffle": shuffle, "batch_rows": 20, "probe_rows": 7}
    pairs = epoch_of(many_groups, 3, **options)
    trained, probed = counted(pairs)
    assert set(trained.values()) == {3}
    assert not set(trained) & set(probed)
    assert len(probed) in (3 * 33, 3 * 33 - 2)
    assert sorted([*trained, *probed]) == list(range(988))
    assert max(probed.values()) - min(probed.values()) <= 1


@pytest.mark.parametrize("probe", [1, 5, HELD, 40])
def test_probes_cycle_through_all_rows_and_repeat_none_within_one(tiny_data: Path, probe: int):
    pairs = epoch_of(tiny_data, 6, batch_rows=4 if probe < 5 else 40, probe_rows=probe)
    expected = min(probe, HELD)
    sequence: list[int] = []
    for pair in pairs:
        rows = ids_of(pair.b1)
        assert len(rows) == len(set(rows)) == expected
        sequence += rows
    assert sequence[HELD : 2 * HELD] == sequence[:HELD]
    assert len(set(sequence[:HELD])) == HELD


def test_the_rows_are_those_of_the_selection_whatever_reads_them(tiny_data: Path):
    """Batch, probe, shuffle, threads and ranks play no part."""
    variants: list[dict[str, Any]] = [
        {},
        {"batch_rows": 3, "probe_rows": 5},
        {"shuffle": "none", "read_threads": 1},
        {"shuffle": "files", "shuffle_row_groups": 1, "prefetch_batches": 1},
    ]
    found = {frozenset(counted(epoch_of(tiny_data, 5, **options))[1]) for options in variants}
    shares = [counted(epoch_of(tiny_data, 5, rank=rank, ranks=3))[1] for rank in range(3)]
    found.add(frozenset(shares[0] + shares[1] + shares[2]))
    assert len(found) == 1
    groups = [rows for shard in Manifest.load(tiny_data).splits["train"].shards for rows in shard.row_groups]
    taken = hold_out(groups, share=0.15, seed=5).rows_of(0, ROWS)
    assert taken is not None
    assert next(iter(found)) == set(taken.tolist())


def test_ranks_share_every_batch(tiny_data: Path):
    whole = epoch_of(tiny_data, 2)
    shares = [epoch_of(tiny_data, 2, rank=rank, ranks=3) for rank in range(3)]
    for pair, *parts in zip(whole, *shares, strict=True):
        assert [row for part in parts for row in ids_of(part.b1)] == ids_of(pair.b1)
        assert [row for part in parts for row in ids_of(part.b2)] == ids_of(pair.b2)


@pytest.mark.parametrize("shuffle", ["none", "rows"])
@pytest.mark.parametrize("damaged", ["fail", "skip"])
@pytest.mark.parametrize("data", ["tiny_data", "many_groups"])
def test_resumed_at_any_position_the_pairs_are_the_same(request, tmp_path, data: str, shuffle: str, damaged: str):
    folder: Path = request.getfixturevalue(data)
    if damaged == "skip":
        groups = {"tiny_data": 20, "many_groups": 90}[data]
        folder = write_tiny(tmp_path / "damaged", {"train": [[7] * 5, [4] * groups]})
        flip_in_row_group(folder / "train" / "part-00000.parquet", 1)
        for group in range(0, groups, 7):
            flip_in_row_group(folder / "train" / "part-00001.parquet", group)
    share = {"held_out_share": 0.4} if damaged == "skip" else {}
    options = OPTIONS | {"shuffle": shuffle, "damaged": damaged, "batch_rows": 12, "probe_rows": 5} | share
    whole = take(folder, 40, **options)
    for at in (1, 4, 5, 6, 19, 33):
        rest = take(folder, 5, position=whole[at - 1].position, **options)
        assert all(same(a, b) for a, b in zip(rest, whole[at : at + 5], strict=True)), at


def test_a_damaged_group_takes_its_rows_out_of_both(tiny_data: Path):
    groups = [rows for shard in Manifest.load(tiny_data).splits["train"].shards for rows in shard.row_groups]
    lost = set(range(groups[0]))
    before = counted(epoch_of(tiny_data, 4))
    flip_in_row_group(tiny_data / "train" / "part-00000.parquet", 0)
    with feed(tiny_data, **OPTIONS, damaged="skip") as pairs:
        after = counted(list(islice(pairs, 4 * (pairs.steps_per_epoch or 0))))
        held = len(lost & set(before[1]))
        assert pairs.skipped_rows == 4 * (groups[0] - held)  # those that would have been trained on
    for old, new in zip(before, after, strict=True):
        assert set(new) == set(old) - lost
    with pytest.raises(StorageError, match="row group 0 cannot be read"):
        epoch_of(tiny_data)


@pytest.mark.parametrize("groups", [20, 400])
def test_damage_of_all_held_out_rows_is_told(tmp_path: Path, groups: int):
    data = write_tiny(tmp_path / "data", {"train": [[2] * groups]})
    share = 0.1
    with feed(data, pairing="held_out", held_out_share=share) as pairs:
        assert pairs.held_out_rows == round(share * 2 * groups)
    taken = hold_out([2] * groups, share=share, seed=5)
    for group in range(groups):
        rows = taken.rows_of(2 * group, 2 * group + 2)
        if rows is None or len(rows):
            flip_in_row_group(data / "train" / "part-00000.parquet", group)
    with pytest.raises(StorageError, match="damage leaves none of the"):
        take(data, 1, pairing="held_out", held_out_share=share, damaged="skip")


def test_a_probe_is_not_taken_for_a_batch_at_its_place(tiny_data: Path, monkeypatch: pytest.MonkeyPatch):
    """Both sequences count from 0, and a batch that was made once is used again for the same place."""
    options = OPTIONS | {"held_out_share": 0.4, "batch_rows": 4, "probe_rows": 4, "shuffle": "none"}
    expected = counted(take(tiny_data, 30, **options))
    monkeypatch.setattr(pairs_module.OncePerBatch, "_of", lambda self, batch, place: self._make(batch))
    assert counted(take(tiny_data, 30, **options)) == expected


def test_the_states_of_two_epochs_are_their_positions(tiny_data: Path):
    with feed(tiny_data, **OPTIONS, batch_rows=10) as pairs:
        assert pairs.steps_per_epoch == 7
        assert [next(pairs).position for _ in range(8)][-2:] == [RowPosition(epoch=1), RowPosition(epoch=1, row=10)]


def test_what_cannot_be_is_refused(tiny_data: Path):
    with pytest.raises(InputError, match=r"65 rows are too few for a batch of 70 .* data.batch_rows to 65"):
        feed(tiny_data, **OPTIONS, batch_rows=70)
    with pytest.raises(InputError, match=r"data.held_out_share = 0.6; give a share above 0 and up to 0.5"):
        feed(tiny_data, pairing="held_out", held_out_share=0.6)
    with pytest.raises(InputError, match=r"not for data.follow = true, which reads no row twice"):
        feed(tiny_data, pairing="held_out", follow=True)
