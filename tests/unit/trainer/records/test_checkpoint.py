"""Checkpoints: exact, whole or absent, and the newest whole one found again after damage."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer.records.checkpoint
import trainer.records.content
from pipeline.errors import InputError, StorageError
from tests.limits import largest_file
from tests.resume import assert_identical
from trainer.records.checkpoint import (
    load_latest,
    lost_random_state,
    random_state,
    restore_random_state,
    save_checkpoint,
    verify_checkpoints,
    write_checkpoint,
)
from trainer.records.config import CheckpointConfig
from trainer.records.content import checkpoint_files


def content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "tensors": {"model": {"table.weight": torch.randn(20, 4, generator=generator)}},
        "state": {"position": {"step": step}, "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}}},
    }


def save(run: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(run, step, **content(step), keep=keep)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip_bit(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset % len(raw)] ^= 1 << (offset % 8)
    path.write_bytes(raw)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 100, 200)
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.path, found.damaged) == (200, tmp_path / "checkpoints" / "step-00000200", ())
    assert_identical({"tensors": found.tensors, "state": found.state}, content(200))


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert load_latest(tmp_path) is None
    assert list(verify_checkpoints(tmp_path)) == []


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    save(tmp_path, 1)
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert files == ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    save(tmp_path, 1)
    modes = {path.stat().st_mode for path in (tmp_path / "checkpoints" / "step-00000001").iterdir()}
    assert len(modes) == 1


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 20, keep=2)
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_checkpoints_of_an_abandoned_future_neither_go_nor_push_others_out(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30)
    flip_bit(tmp_path / "checkpoints" / "step-00000030" / "state.json", 5)
    save(tmp_path, 25, keep=2)
    assert names(tmp_path) == ["step-00000020", "step-00000025", "step-00000030"]
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 25


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 7)
    save_checkpoint(tmp_path, 7, tensors={}, state={"again": True})
    found = load_latest(tmp_path)
    assert found is not None
    assert found.state == {"again": True}
    assert names(tmp_path) == ["step-00000007"]


def test_dying_while_a_step_is_replaced_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 7)
    original = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".partial"):
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 7)
    found = load_latest(tmp_path)
    assert found is not None
    assert_identical(found.state, content(7)["state"])
    monkeypatch.undo()
    save(tmp_path, 7)
    assert names(tmp_path) == ["step-00000007"]


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "state.json", "state.safetensors"])
def test_any_flipped_bit_is_noticed_and_the_older_one_taken(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1, 2)
    damaged = tmp_path / "checkpoints" / "step-00000002" / file
    original = damaged.read_bytes()
    for offset in random.Random(0).sample(range(len(original)), 20):
        flip_bit(damaged, offset)
        found = load_latest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert len(found.damaged) == 1
        assert "step-00000002" in found.damaged[0]
        assert file in found.damaged[0]
        damaged.write_bytes(original)
    assert [health.damage for health in verify_checkpoints(tmp_path)] == [None, None]


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "state.json"])
def test_a_missing_or_shortened_file_is_noticed(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1, 2, 3)
    (tmp_path / "checkpoints" / "step-00000003" / file).unlink()
    path = tmp_path / "checkpoints" / "step-00000002" / file
    path.write_bytes(path.read_bytes()[:-3])
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [line.split()[0] for line in found.damaged] == ["step-00000003", "step-00000002"]
    assert [health.damage is None for health in verify_checkpoints(tmp_path)] == [False, False, True]


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        flip_bit(tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors", 100)
    with pytest.raises(StorageError, match=r"no checkpoint is whole \(step-00000002.*step-00000001"):
        load_latest(tmp_path)


def test_a_newer_format_is_refused_rather_than_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(trainer.records.content, "CHECKPOINT_VERSION", 4)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"checkpoint format 4.*update"):
        load_latest(tmp_path)


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
def test_a_full_disk_is_an_os_error_and_leaves_the_older_one(tmp_path: Path, size: int) -> None:
    save(tmp_path, 1)
    tensors = {"model": {"weight": torch.zeros(100_000)}}
    with largest_file(size), pytest.raises(OSError):
        save_checkpoint(tmp_path, 2, tensors=tensors, state={}, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    save_checkpoint(tmp_path, 2, tensors=tensors, state={}, keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_dying_midway_leaves_nothing_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(trainer.records.checkpoint.shutil, "rmtree", lambda *_, **__: None)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == [".partial-step-00000002", "step-00000001"]
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert found.damaged == ()
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_state_without_a_form_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="policy"):
        save_checkpoint(tmp_path, 1, tensors={}, state={"policy": object()})
    assert names(tmp_path) == []


def test_every_file_is_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    save(tmp_path, 1)
    files = ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
    assert sorted(events[:4]) == files
    assert events[4:] == [".partial-step-00000001", "rename", "checkpoints"]


def test_dying_while_an_old_one_is_deleted_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    original = shutil.rmtree

    def die(path: Path, **_: object) -> None:
        if "step-00000001" in path.name:
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt
        original(path)

    monkeypatch.setattr(trainer.records.checkpoint.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, keep=1)
    assert [(health.step, health.damage) for health in verify_checkpoints(tmp_path)] == [(2, None)]
    monkeypatch.undo()
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_checkpoints_that_a_run_replaces_while_they_are_looked_at_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    checked, steps = trainer.records.checkpoint.find_damage, iter((3, 4))

    def find_while_saving(path: Path) -> str | None:
        for step in steps:
            save(tmp_path, step, keep=1)
        return checked(path)

    monkeypatch.setattr(trainer.records.checkpoint, "find_damage", find_while_saving)
    assert list(verify_checkpoints(tmp_path)) == []
    steps = iter((5, 6))
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.damaged) == (6, ())
    assert [(health.step, health.damage) for health in verify_checkpoints(tmp_path)] == [(6, None)]


def test_what_must_precede_a_checkpoint_comes_after_its_files_and_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(names(tmp_path))

    write_checkpoint(tmp_path, 1, checkpoint_files({}, {}), keep=1, before_publishing=look)
    assert seen == [[".partial-step-00000001"]]

    def fail() -> None:
        raise OSError("the records cannot be synced")

    with pytest.raises(OSError, match="records"):
        write_checkpoint(tmp_path, 2, checkpoint_files({}, {}), keep=1, before_publishing=fail)
    assert names(tmp_path) == ["step-00000001"]


def test_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints" / "step-00000003"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    assert manifest["step"] == 3


def test_random_state_returns_all_generators(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()]  # noqa: NPY002

    before = random_state()
    try:
        np.random.standard_normal()  # noqa: NPY002 (leaves half of a pair of Gaussians behind)
        save_checkpoint(tmp_path, 1, tensors={}, state={"random": random_state()})
        expected = draw()
        found = load_latest(tmp_path)
        assert found is not None
        restore_random_state(found.state["random"])
        assert draw() == expected
    finally:
        restore_random_state(before)


def test_what_is_drawn_on_devices_that_are_not_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lost_random_state({"cuda": []}) is None
    said = lost_random_state({"cuda": [one]})
    assert said is not None
    assert said.startswith("the checkpoint has the random state of 1 CUDA device, and none is here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert lost_random_state({"cuda": [one, one]}) is None
    assert "1 CUDA device, and 2 are here" in (lost_random_state({"cuda": [one]}) or "")


@pytest.mark.parametrize("values", [{"every_steps": 0}, {"every_seconds": -1.0}, {"keep": 0}])
def test_impossible_settings_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=f"checkpoint.{next(iter(values))} is"):
        CheckpointConfig(**values)
