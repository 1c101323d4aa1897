"""Pairs of a log that grows: the same whenever its generations come, and errors for one that shrinks or changes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device import Feed
from pipeline.errors import InputError, InterruptedWaitError, NoRowsYetError
from pipeline.rows import GrowingLog, PairSpans, RowPosition
from pipeline.rows.growing import PATIENCE_SECONDS
from pipeline.shards import MANIFEST, Generation, Manifest
from tests.tiny_data import feed, write_tiny

SIZES: list[list[list[int]]] = [[[7, 7], [9]], [[3]], [], [[1]], [[20, 12]]]
"""Rows of each row group of each shard, by generation: one is smaller than a pair, one has no rows, one has one."""


def part(root: Path, index: int) -> Manifest:
    """A folder of one generation, whose rows are numbered apart from those of others."""
    folder = root / f"part{index}"
    return Manifest.load(folder if folder.exists() else write_tiny(folder, {"train": SIZES[index]}))


def grow(data: Path, upto: int) -> None:
    """Makes of `data` the folder of the first `upto` generations."""
    parts = [part(data.parent, index) for index in range(upto)]
    data.mkdir(exist_ok=True)
    generations = []
    for index, one in enumerate(parts):
        renamed = {}
        for name, split in one.splits.items():
            shards = [replace(shard, path=f"{index}-{shard.path.replace('/', '-')}") for shard in split.shards]
            for old, new in zip(split.shards, shards, strict=True):
                shutil.copy(one.root / old.path, data / new.path)
            renamed[name] = replace(split, shards=tuple(shards))
        generations.append(
            Generation(
                index=index, splits=renamed, statistics={}, total={}, rejected_rows=0, rejects=(), plan={}, created=0.0
            )
        )
    union = {
        name: replace(split, shards=tuple(shard for each in generations for shard in each.splits[name].shards))
        for name, split in parts[0].splits.items()
    }
    manifest = replace(parts[0], folder=data, splits=union, listed=tuple(generations) if upto > 1 else ())
    manifest.save()


def following(data: Path, **changes: Any) -> Feed:
    return feed(data, follow=True, follow_poll_seconds=0.01, **changes)


def labels(pairs: Feed) -> Iterator[tuple[Any, ...]]:
    while True:
        try:
            pair = next(pairs)
        except NoRowsYetError:
            return
        ids = [batch.dense[:, 0].tolist() for batch in (pair.b1, pair.b2)]
        yield pair.epoch, pair.start, *ids, pair.fresh


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_each_generation_comes_once_in_order_whenever_it_is_added(tmp_path: Path, pairing: str) -> None:
    data = tmp_path / "data"
    grow(data, 5)
    with following(data, pairing=pairing) as pairs:
        expected = list(labels(pairs))
    assert [epoch for epoch, *_ in expected] == sorted(epoch for epoch, *_ in expected)
    trained = {epoch: [row for at, _, _, b2, _ in expected if at == epoch for row in b2] for epoch in range(5)}
    probed = {
        epoch: [row for at, _, b1, _, fresh in expected if at == epoch and fresh for row in b1] for epoch in trained
    }
    for epoch, groups in enumerate(SIZES):
        rows = sum(map(sum, groups))
        once = trained[epoch] + (probed[epoch] if pairing == "disjoint" else [])
        assert len(once) == rows, f"generation {epoch}"

    grown = tmp_path / "grown"
    shutil.copytree(tmp_path / "part0", tmp_path / "kept0")
    grow(grown, 1)
    found = []
    with following(grown, pairing=pairing) as pairs:
        for upto in range(1, 6):
            grow(grown, upto)
            while not pairs.await_rows(0.2) and pairs.log is not None and pairs.log.count < upto:
                pass
            found += list(labels(pairs))
    assert found == expected


def test_it_goes_on_from_any_position(tmp_path: Path) -> None:
    data = tmp_path / "data"
    grow(data, 5)
    with following(data) as pairs:
        expected = list(labels(pairs))
    for cut in range(len(expected)):
        with following(data) as pairs:
            list(islice(labels(pairs), cut))
            state = pairs.state_dict()
        with following(data) as pairs:
            pairs.load_state_dict(state)
            assert list(labels(pairs)) == expected[cut:], cut


def test_a_wait_is_told_of_and_ends_when_asked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    grow(data, 1)
    with following(data) as pairs:
        assert len(list(labels(pairs))) == 3
        assert not pairs.await_rows(0)
        pairs.interrupted = lambda: True
        with pytest.raises(InterruptedWaitError):
            pairs.await_rows(60)
    with following(data, position=RowPosition(epoch=1)) as pairs, pytest.raises(NoRowsYetError):
        pairs.fill()
    with pytest.raises(InputError, match="row 3 of epoch 1"):
        following(data, position=RowPosition(epoch=1, row=3))


def test_a_log_that_shrinks_or_changes_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    grow(data, 3)
    log = GrowingLog(Manifest.load(data), data=str(data), poll_seconds=1)
    grow(data, 2)
    with pytest.raises(InputError, match="generation 2 is gone"):
        log.look()
    shutil.rmtree(tmp_path / "part1")
    shutil.copytree(tmp_path / "part0", tmp_path / "part1")
    grow(data, 3)
    with pytest.raises(InputError, match="generation 1 has other rows"):
        log.look()


def test_a_manifest_that_cannot_be_read_is_looked_at_again_for_a_while(tmp_path: Path) -> None:
    data, now = tmp_path / "data", [0.0]
    grow(data, 1)
    log = GrowingLog(Manifest.load(data), data=str(data), poll_seconds=1, monotonic=lambda: now[0])
    (data / MANIFEST).rename(data / "elsewhere")
    log.look()
    assert log.trouble is not None
    (data / "elsewhere").rename(data / MANIFEST)
    log.look()
    assert log.trouble is None
    (data / MANIFEST).unlink()
    now[0] = PATIENCE_SECONDS
    log.look()
    now[0] += 1
    with pytest.raises(OSError, match="No such file"):
        log.look()


def test_closing_ends_a_wait(tmp_path: Path) -> None:
    data = tmp_path / "data"
    grow(data, 1)
    pairs = feed(data, follow=True, follow_poll_seconds=3600)
    list(labels(pairs))
    closing = threading.Thread(target=pairs.close)
    closing.start()
    closing.join(timeout=30)
    assert not closing.is_alive()


@pytest.mark.parametrize("pairing", ["sliding", "disjoint"])
def test_a_generation_of_any_size_makes_pairs(pairing: str) -> None:
    for rows in range(1, 40):
        spans = PairSpans.within(rows=rows, batch_rows=10, probe_rows=6, pairing=pairing)  # pyright: ignore
        assert spans.batch_rows <= 10
        assert 1 <= spans.probe_rows <= 6
        place, seen = RowPosition(), np.zeros(rows, int)
        while place.epoch == 0:
            probe, train = spans.at(place.row)
            assert train[1] > train[0]
            seen[slice(*train)] += 1
            if probe and pairing == "disjoint":
                seen[slice(*probe)] += 1
            place = spans.position_after(place, 1)
        assert (seen == 1).all(), rows
