"""A checkpoint of several ranks is whole or not there at all, and all ranks know which."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.records.sharded.writing
from pipeline.errors import StorageError
from tests.limits import largest_file
from tests.rank_threads import ThreadGroup, on_ranks, share
from tests.resume import assert_identical
from tests.sharded_content import content_of, names_in, rows_of, save_on, save_rows, shares_of, whole_content
from trainer.job.save_thread import SaveThread
from trainer.job.saving import lacks_space
from trainer.records import (
    HostMemory,
    RankFailedError,
    RanksDriftedError,
    RowRange,
    Shares,
    checkpoint_files,
    load_latest,
    write_checkpoint,
)

RANKS = 3


def only_the_older_one_is_there(run: Path) -> None:
    """And the next save is as any other."""
    assert names_in(run) == ["step-00000001"]
    found = load_latest(run)
    assert found is not None
    assert_identical(content_of(found), whole_content(1))


def next_save_succeeds(run: Path) -> None:
    assert save_on(RANKS, run, 3, keep=1) == [run / "checkpoints" / "step-00000003"] * RANKS
    assert names_in(run) == ["step-00000003"]
    found = load_latest(run)
    assert found is not None
    assert_identical(content_of(found), whole_content(3))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_disk_that_refuses_the_rows_of_one_rank_is_an_error_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, number: int
) -> None:
    save_on(RANKS, tmp_path, 1)
    write = trainer.records.sharded.writing.write_tensors

    def refuse(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        write(path, tensors)
        if path.name.startswith(f"rank-{rank:05d}"):
            raise StorageError(number, os.strerror(number), str(path))

    monkeypatch.setattr(trainer.records.sharded.writing, "write_tensors", refuse)
    for error in save_on(RANKS, tmp_path, 2):
        assert isinstance(error, StorageError)
        assert (error.errno, error.strerror) == (number, f"rank {rank} of 3: {os.strerror(number)}")
        assert f"rank-{rank:05d}-of-00003.safetensors" in error.filename
        assert lacks_space(error) == (number != errno.EIO)
    monkeypatch.undo()
    only_the_older_one_is_there(tmp_path)
    next_save_succeeds(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 700, 1500])
def test_a_full_disk_is_all_ranks_error_wherever_it_is_found(tmp_path: Path, size: int) -> None:
    save_on(RANKS, tmp_path, 1)
    with largest_file(size):
        outcomes = save_on(RANKS, tmp_path, 2)
    assert [type(error) for error in outcomes] == [StorageError] * RANKS
    assert len({str(error) for error in outcomes}) == 1
    assert outcomes[0].errno == errno.EFBIG  # which is what this limit gives
    only_the_older_one_is_there(tmp_path)
    next_save_succeeds(tmp_path)


PLACES = [
    "begin",
    "_until_shown",
    "write_tensors",
    "write_state",
    "file_entry",
    "write_manifest",
    "sync_folder",
    "publish",
]


@pytest.mark.parametrize("place", PLACES)
def test_an_error_anywhere_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    save_on(RANKS, tmp_path, 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "somewhere")

    monkeypatch.setattr(trainer.records.sharded.writing, place, refuse)
    for error in save_on(RANKS, tmp_path, 2):
        assert isinstance(error, StorageError)
        assert error.errno == errno.EIO
        assert "of 3: Input/output error" in str(error)
    monkeypatch.undo()
    only_the_older_one_is_there(tmp_path)
    next_save_succeeds(tmp_path)


def test_what_must_precede_a_checkpoint_is_done_once_and_its_error_is_all_ranks(tmp_path: Path) -> None:
    save_on(RANKS, tmp_path, 1)
    seen: list[list[str]] = []

    def fail() -> None:
        seen.append(names_in(tmp_path))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "steps.jsonl")

    for error in save_on(RANKS, tmp_path, 2, before_publishing=fail):
        assert isinstance(error, StorageError)
        assert lacks_space(error)
        assert "rank 0 of 3" in str(error)
    assert seen == [[".partial-step-00000002", "step-00000001"]]
    only_the_older_one_is_there(tmp_path)


@pytest.mark.parametrize("told", [True, False])
def test_older_ones_that_cannot_be_deleted_are_told_on_rank_0_or_raised_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    save_on(RANKS, tmp_path, 1)
    notes: list[OSError] = []

    def refuse(_: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", "old")

    monkeypatch.setattr(trainer.records.kept, "remove", refuse)
    outcomes = save_on(RANKS, tmp_path, 2, keep=1, not_pruned=notes.append if told else None)
    assert names_in(tmp_path) == ["step-00000001", "step-00000002"]
    if told:
        assert outcomes == [tmp_path / "checkpoints" / "step-00000002"] * RANKS
        assert [error.errno for error in notes] == [errno.EACCES]
    else:
        assert [error.errno for error in outcomes] == [errno.EACCES] * RANKS


def test_what_trying_again_would_not_mend_ends_all_ranks(tmp_path: Path) -> None:
    save_on(RANKS, tmp_path, 1)
    whole = whole_content(2)

    def save(group: ThreadGroup) -> Path:
        content = rows_of(whole, share(7, group))
        if group.rank == 1:
            content["state"] |= {"policy": object()}
        return save_rows(tmp_path, 2, group, content)

    first, own, last = on_ranks(RANKS, save)
    assert isinstance(own, TypeError)
    for error in (first, last):
        assert isinstance(error, RankFailedError)
        assert str(error) == "rank 1 of 3: TypeError: cannot save policy: no form for object"
    only_the_older_one_is_there(tmp_path)


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("gathers", range(3))
def test_a_rank_that_dies_leaves_none_waiting(tmp_path: Path, rank: int, gathers: int) -> None:
    save_on(RANKS, tmp_path, 1)
    whole = whole_content(2)

    def save(group: ThreadGroup) -> Path:
        gather = group.gather

        def die_or_gather(value: Any) -> list[Any]:
            if group.rank == rank and group.gathers == gathers:
                raise KeyboardInterrupt
            return gather(value)

        group.gather = die_or_gather  # pyright: ignore[reportAttributeAccessIssue]
        return save_rows(tmp_path, 2, group, rows_of(whole, share(7, group)))

    outcomes = on_ranks(RANKS, save)
    assert isinstance(outcomes.pop(rank), KeyboardInterrupt)
    assert not [each for each in outcomes if isinstance(each, Path)]
    found = load_latest(tmp_path)
    assert found is not None
    assert_identical(content_of(found), whole_content(found.step))
    if gathers < 2:
        only_the_older_one_is_there(tmp_path)
    elif rank == 0:  # which had named the new one; where another dies then, rank 0 may not have come so far
        assert found.step == 2
    next_save_succeeds(tmp_path)


def changed(content: dict[str, Any], where: str) -> dict[str, Any]:
    if where == "top.weight":
        weight = content["tensors"]["model"]["top.weight"].clone()
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        content["tensors"]["model"]["top.weight"] = weight
    elif where == "more":
        content["tensors"]["average"]["more"] = torch.ones(1)
    elif where == "dtype":
        content["tensors"]["average"]["top.weight"] = content["tensors"]["average"]["top.weight"].view(torch.int64)
    else:
        content["state"]["random"] = {"torch": torch.ones(8, dtype=torch.uint8)}
    return content


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("top.weight", "top.weight in model.safetensors of rank 2"),
        ("more", "more in average.safetensors of rank 2"),
        ("dtype", "top.weight in average.safetensors of rank 2"),
    ],
)
def test_ranks_that_have_drifted_apart_save_nothing(tmp_path: Path, where: str, message: str) -> None:
    save_on(RANKS, tmp_path, 1)

    def save(group: ThreadGroup) -> Path:
        content = rows_of(whole_content(2), share(7, group))
        return save_rows(tmp_path, 2, group, changed(content, where) if group.rank == 2 else content)

    for error in on_ranks(RANKS, save):
        assert isinstance(error, RanksDriftedError)
        assert f"ranks have drifted apart: {message} is not what rank 0 has" in str(error)
    only_the_older_one_is_there(tmp_path)


def test_random_states_may_differ_and_those_of_rank_0_are_kept(tmp_path: Path) -> None:
    def save(group: ThreadGroup) -> Path:
        content = rows_of(whole_content(2), share(7, group))
        return save_rows(tmp_path, 2, group, changed(content, "random") if group.rank else content)

    assert on_ranks(RANKS, save) == [tmp_path / "checkpoints" / "step-00000002"] * RANKS
    found = load_latest(tmp_path)
    assert found is not None
    assert_identical(content_of(found), whole_content(2))


def test_ranks_at_different_steps_save_nothing(tmp_path: Path) -> None:
    save_on(2, tmp_path, 1)
    for error in on_ranks(
        2, lambda group: save_rows(tmp_path, 2 + group.rank, group, rows_of(whole_content(2), share(7, group)))
    ):
        assert isinstance(error, RanksDriftedError)
        assert "rank 1 saves step 3, rank 0 2" in str(error)
    only_the_older_one_is_there(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 3, 7), (4, 7, 7)),
        ((0, 4, 7), (3, 7, 7)),
        ((0, 4, 7), (4, 6, 7)),
        ((1, 4, 7), (4, 7, 7)),
        ((0, 4, 7), (4, 7, 8)),
    ],
    ids=["a gap", "twice", "the end", "the beginning", "another table"],
)
def test_rows_that_no_rank_has_or_two_save_nothing(
    tmp_path: Path, first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    save_on(2, tmp_path, 1)
    ranges = (RowRange(*first), RowRange(*second))

    def save(group: ThreadGroup) -> Path:
        mine = ranges[group.rank]
        content = rows_of(whole_content(2), mine)
        files = checkpoint_files(content["tensors"], content["state"])
        return write_checkpoint(tmp_path, 2, files, keep=9, shares=shares_of(group, mine))

    for error in on_ranks(2, save):
        assert isinstance(error, RanksDriftedError)
        assert "ranks do not have every row of " in str(error)
        assert "table.weight once: rank 0 " in str(error)
    only_the_older_one_is_there(tmp_path)


def test_rows_that_a_tensor_does_not_have_are_a_broken_promise(tmp_path: Path) -> None:
    def save(group: ThreadGroup, rows: dict[tuple[str, str], RowRange]) -> Path:
        files = checkpoint_files({"model": {"table": torch.ones(3)}}, {})
        return write_checkpoint(tmp_path, 2, files, keep=9, shares=Shares(group=group, rows=rows))

    for key, mine, message in (("table", RowRange(0, 4, 7), "3 rows where"), ("tabel", RowRange(0, 3, 7), "no tensor")):
        for error in on_ranks(2, lambda group, key=key, mine=mine: save(group, {("model", key): mine})):
            assert isinstance(error, AssertionError)
            assert message in str(error)


def test_a_file_system_that_shows_what_others_made_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.records.sharded.writing, "LOOK_SECONDS", 0.0)
    hidden: dict[Path, int] = {}
    exists = Path.exists

    def late(path: Path, **values: Any) -> bool:
        if not (path.name.startswith((".partial", "rank-"))):
            return exists(path, **values)
        hidden[path] = hidden.get(path, 0) + 1
        return hidden[path] > 9 and exists(path, **values)

    monkeypatch.setattr(Path, "exists", late)
    save_on(2, tmp_path, 2)
    monkeypatch.undo()
    assert {path.name: count > 9 for path, count in hidden.items()} == {
        ".partial-step-00000002": True,
        "rank-00000-of-00002.safetensors": True,
        "rank-00001-of-00002.safetensors": True,
    }
    found = load_latest(tmp_path)
    assert found is not None
    assert_identical(content_of(found), whole_content(2))


@pytest.mark.parametrize("who", ["a rank", "rank 0"])
def test_a_run_on_disks_of_their_own_is_refused_by_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(trainer.records.sharded.writing, "SHOWN_SECONDS", 0.0)
    runs = (tmp_path / "here", tmp_path / "there")
    if who == "rank 0":  # the other machine has the folder of an earlier attempt
        (runs[1] / "checkpoints" / ".partial-step-00000002").mkdir(parents=True)
    for error in on_ranks(
        2, lambda group: save_rows(runs[group.rank], 2, group, rows_of(whole_content(2), share(7, group)))
    ):
        assert isinstance(error, StorageError)
        assert "RUN must be on a file system that all machines share" in str(error)
        assert str(error).startswith(f"[Errno 2] rank {0 if who == 'rank 0' else 1} of 2: ")
    assert names_in(runs[0]) == []


def test_the_newest_are_kept_and_leftovers_of_more_ranks_swept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_on(RANKS, tmp_path, step, keep=2)
    left = tmp_path / "checkpoints" / ".partial-step-00000004"
    left.mkdir()
    (left / "rank-00003-of-00004.safetensors").write_bytes(b"half")
    save_on(2, tmp_path, 4, keep=2, best_step=1)
    assert names_in(tmp_path) == ["step-00000003", "step-00000004"]
    assert len(list((tmp_path / "checkpoints" / "step-00000004").glob("rank-*"))) == 2


def test_every_file_is_readable_as_the_umask_says_and_synced_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    save_on(2, tmp_path, 1)
    final = tmp_path / "checkpoints" / "step-00000001"
    before = events[: events.index("rename")]
    assert {path.name for path in final.iterdir()} <= set(before)
    assert before[-3:] == ["state.json", "manifest.json", ".partial-step-00000001"]
    assert events[events.index("rename") :] == ["rename", "checkpoints"]
    assert len({stat.S_IMODE(path.stat().st_mode) for path in final.iterdir()}) == 1


def test_threads_write_what_was_copied_while_training_goes_on(tmp_path: Path) -> None:
    def train(group: ThreadGroup) -> list[Any]:
        content, memory, outcomes = rows_of(whole_content(1), share(7, group)), HostMemory(), []
        table = content["tensors"]["model"]["table.weight"]
        with SaveThread() as saves:
            for step in (1, 2):
                table += 1
                files = memory.snapshot(content["tensors"], content["state"])
                assert files is not None
                write = writer(saves.until_abandoned(files), step, group)
                saves.begin(step, write)
                table += 0.5
                table -= 0.5
                outcomes.append(saves.take(wait=True))
        return outcomes

    def writer(files: Iterator[Any], step: int, group: ThreadGroup) -> Callable[[], Path]:
        return lambda: write_checkpoint(tmp_path, step, files, keep=1, shares=shares_of(group, share(7, group)))

    for outcomes in on_ranks(2, train):
        assert [(each.step, each.error) for each in outcomes] == [(1, None), (2, None)]
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2
    expected = whole_content(1)["tensors"]["model"]["table.weight"] + 1 + 1
    assert torch.allclose(found.tensors["model"]["table.weight"], expected)
