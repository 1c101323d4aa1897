"""Checkpoints of format 2, in which each rank's rows follow one another, are read by any number of ranks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import trainer.records.sharded.reading
from tests.rank_threads import on_ranks, share
from tests.resume import assert_identical
from tests.sharded_content import TABLES, content_of, load_rows, rows_of, save_on, whole_content
from trainer.records import RowRange, checkpoint_files, load_latest, verify_checkpoints


def save_contiguous(run: Path, step: int, ranks: int, rows: int) -> None:
    """What earlier versions wrote: ⌈rows/ranks⌉ rows a rank, as [start, stop), fewer or none at the end."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    whole, most = whole_content(step, rows), -(-rows // ranks)
    forms = {}
    for file in checkpoint_files(whole["tensors"], whole["state"]):
        forms[file.name] = file.form
        alike = {name: tensor for name, tensor in file.tensors.items() if (file.name, name) not in TABLES}
        save_file(alike, folder / f"{file.name}.safetensors")
    ranges = {}
    for rank in range(ranks):
        start, stop = min(rank * most, rows), min((rank + 1) * most, rows)
        ranges[f"rank-{rank:05d}-of-{ranks:05d}.safetensors"] = [start, stop]
        mine = rows_of(whole, RowRange(start, stop, rows))
        files = list(checkpoint_files(mine["tensors"], mine["state"]))
        held = {f"{file.name}/{name}": file.tensors[name] for file in files for name in file.tensors}
        named = {f"{file}/{name}": held[f"{file}/{name}"].clone() for file, name in TABLES}
        save_file(named, folder / f"rank-{rank:05d}-of-{ranks:05d}.safetensors")
    shapes = {f"{file}/{name}": [rows] if name.endswith("current_at") else [rows, 3] for file, name in TABLES}
    layout = {key: {"shape": shape, "ranges": ranges} for key, shape in shapes.items()}
    state = {"state": forms.pop("state"), "tensors": forms, "sharded": layout}
    (folder / "state.json").write_text(json.dumps(state))
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    manifest = {"format_version": 2, "step": step, "files": entries}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("saved_on", [2, 3])
def test_they_are_read_whole_and_in_rows_of_any_number_of_ranks(tmp_path: Path, saved_on: int, rows: int) -> None:
    save_contiguous(tmp_path, 5, saved_on, rows)
    assert [health.damage for health in verify_checkpoints(tmp_path)] == [None]
    found = load_latest(tmp_path)
    assert found is not None
    assert_identical(content_of(found), whole_content(5, rows))
    for ranks in (1, 2, 3):
        outcomes = on_ranks(ranks, lambda group: (load_rows(tmp_path, group, rows), share(rows, group)))
        assert len({mine for _, mine in outcomes}) == min(ranks, rows + 1)
        for read, mine in outcomes:
            assert_identical(content_of(read), rows_of(whole_content(5, rows), mine))


def test_a_byte_that_has_changed_in_one_is_found(tmp_path: Path) -> None:
    save_contiguous(tmp_path, 5, 2, 7)
    damaged = tmp_path / "checkpoints" / "step-00000005" / "rank-00001-of-00002.safetensors"
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    assert [health.damage for health in verify_checkpoints(tmp_path)] == [f"{damaged.name} does not match its hash"]


def test_what_is_written_now_says_the_step_and_has_a_number_that_earlier_programs_refuse(tmp_path: Path) -> None:
    save_on(2, tmp_path, 5)
    folder = tmp_path / "checkpoints" / "step-00000005"
    assert json.loads((folder / "manifest.json").read_bytes())["format_version"] == 3
    layout = json.loads((folder / "state.json").read_bytes())["sharded"]
    assert layout["model/table.weight"]["ranges"] == {
        "rank-00000-of-00002.safetensors": [0, 7, 2],
        "rank-00001-of-00002.safetensors": [1, 7, 2],
    }


@pytest.mark.parametrize("rows", [0, 1, 13])
def test_the_rows_that_two_ranges_have_in_common_are_found_where_each_has_them(rows: int) -> None:
    ranges = [
        RowRange(start, stop, rows, step)
        for step in (1, 2, 3, 4, 6)
        for start in {0, min(1, rows), min(5, rows)}
        for stop in {start, max(start, rows - 3), rows}
    ]
    for one in ranges:
        for other in ranges:
            common = one.common(other)
            assert list(common) == [number for number in one.numbers if number in other.numbers]
            if common:
                assert list(one.numbers[one.places(common)]) == list(common)
                assert list(other.numbers[other.places(common)]) == list(common)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_rows_that_are_copied_some_at_a_time_are_those_that_are_copied_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(trainer.records.sharded.reading, "COPIED_ROWS", at_once)
    save_contiguous(tmp_path / "before", 5, 2, 13)
    save_on(1, tmp_path / "one", 5, 13)
    save_on(3, tmp_path / "three", 5, 13)
    for saved in ("before", "one", "three"):
        for read, mine in on_ranks(
            2, lambda group, run=tmp_path / saved: (load_rows(run, group, 13), share(13, group))
        ):
            assert_identical(content_of(read), rows_of(whole_content(5, 13), mine))
