"""Which checkpoints stay: never fewer than a resume needs, and none goes that would not make room."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.records.checkpoint
import trainer.records.content
from trainer.records import checkpoint_files, load_latest, make_room, save_checkpoint, write_checkpoint
from trainer.records.kept import folder_bytes, prune, replaced_by


def save(run: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(run, step, tensors={"model": {"weight": torch.full((500,), float(step))}}, state={}, keep=10)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with five checkpoints of one size on a disk with nothing free."""
    save(tmp_path, 1, 2, 3, 4, 5)
    monkeypatch.setattr(trainer.records.checkpoint, "free_bytes", lambda _: 0)
    return tmp_path


def one(run: Path) -> int:
    return folder_bytes(run / "checkpoints" / "step-00000003")


def test_the_oldest_go_and_no_more_than_must(disk: Path) -> None:
    assert make_room(disk, one(disk) + 1) == ["step-00000001", "step-00000002"]
    assert names(disk) == ["step-00000003", "step-00000004", "step-00000005"]


def test_what_is_free_already_counts(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.records.checkpoint, "free_bytes", lambda _: 10)
    assert make_room(disk, one(disk) + 1) == ["step-00000001"]


def test_a_disk_that_says_there_is_room_has_a_quota_and_so_much_is_freed(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.records.checkpoint, "free_bytes", lambda _: 10**12)
    assert make_room(disk, one(disk)) == ["step-00000001"]


def test_the_newest_stays_and_none_goes_in_vain(disk: Path) -> None:
    size = one(disk)
    assert make_room(disk, 5 * size) == []
    assert len(names(disk)) == 5
    assert make_room(disk, 4 * size) == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    assert names(disk) == ["step-00000005"]
    assert make_room(disk, 1) == []


def test_the_one_that_a_resume_would_take_stays_though_a_damaged_one_is_newer(disk: Path) -> None:
    for step in (4, 5):
        (disk / "checkpoints" / f"step-0000000{step}" / "model.safetensors").write_bytes(b"nothing")
    assert make_room(disk, 3 * one(disk)) == []
    assert make_room(disk, 2 * one(disk)) == ["step-00000001", "step-00000002"]
    found = load_latest(disk)
    assert found is not None
    assert found.step == 3
    assert len(found.damaged) == 2


def test_without_a_whole_one_none_goes(disk: Path) -> None:
    for path in (disk / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    assert make_room(disk, one(disk)) == []
    assert len(names(disk)) == 5


def test_one_of_a_newer_version_counts_as_whole(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.records.content, "SHARDED_VERSION", 0)
    assert make_room(disk, one(disk)) == ["step-00000001"]


def test_a_run_without_checkpoints_has_none_to_delete(tmp_path: Path) -> None:
    assert make_room(tmp_path, 10**30) == []


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 1 cannot be deleted."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "step-00000001":
            raise PermissionError(1, "Operation not permitted", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.usefixtures("stuck")
def test_one_that_cannot_be_deleted_neither_fails_the_new_one_nor_keeps_the_others(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    errors: list[OSError] = []
    path = write_checkpoint(tmp_path, 4, checkpoint_files({}, {}), keep=1, not_pruned=errors.append)
    assert names(tmp_path) == ["step-00000001", path.name]
    assert [Path(error.filename).name for error in errors] == ["step-00000001"]
    with pytest.raises(PermissionError):
        write_checkpoint(tmp_path, 5, checkpoint_files({}, {}), keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000005"]


def test_leftovers_that_cannot_be_deleted_do_not_fail_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over = tmp_path / "checkpoints" / ".partial-step-00000001"
    left_over.mkdir(parents=True)
    rmtree = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False, **rest: Any) -> None:
        if Path(path) != left_over:
            rmtree(path, ignore_errors=ignore_errors, **rest)
        elif not ignore_errors:
            raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(tmp_path, 2)
    assert names(tmp_path) == [".partial-step-00000001", "step-00000002"]


def test_a_replaced_one_goes_with_its_successor_and_stays_without(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    final = tmp_path / "checkpoints" / "step-00000002"
    shutil.copytree(final, replaced_by(final))
    prune(final.parent, 2, keep=2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    final.rename(replaced_by(final))
    prune(final.parent, 3, keep=2)
    assert names(tmp_path) == ["step-00000002.replaced"]
