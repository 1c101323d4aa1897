"""Saved on some ranks, read on others: every tensor as it was, bit for bit, and no rank ever has more than its rows."""

from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import trainer.records.sharded.reading
from pipeline.errors import InputError, StorageError
from tests.rank_threads import ThreadGroup, on_ranks, share
from tests.resume import assert_identical
from tests.sharded_content import (
    TABLES,
    content_of,
    load_rows,
    names_in,
    rows_of,
    save_on,
    save_rows,
    taken,
    whole_content,
)
from trainer.records import (
    RankFailedError,
    RowRange,
    folder_bytes,
    load_latest,
    make_room_on_ranks,
    read_checkpoint,
    save_checkpoint,
    stored_value,
    verify_checkpoints,
)

SYSTEM_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def same_path(outcomes: list[Any], path: Path) -> None:
    assert outcomes == [path] * len(outcomes)


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("ranks", [2, 3])
def test_one_process_reads_whole_tensors(tmp_path: Path, ranks: int, rows: int) -> None:
    final = tmp_path / "checkpoints" / "step-00000005"
    same_path(save_on(ranks, tmp_path, 5, rows), final)
    assert sorted(path.name for path in final.iterdir()) == [
        "average.safetensors",
        "manifest.json",
        "model.safetensors",
        *(f"rank-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)),
        "snapshots.safetensors",
        "state.json",
        "state.safetensors",
    ]
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.damaged) == (5, ())
    assert_identical(content_of(found), whole_content(5, rows))
    assert found.tensors["model"]["tied"] is found.tensors["model"]["table.weight"]
    assert stored_value(tmp_path, "position") == {"step": 5}
    assert [health.damage for health in verify_checkpoints(tmp_path)] == [None]


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize(("first", "then"), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 2)])
def test_from_any_number_of_ranks_to_any_other_and_back(tmp_path: Path, first: int, then: int, rows: int) -> None:
    """Each saves what it has read, so that the last has been through all."""
    save_on(first, tmp_path, 5, rows)

    def read_and_save(group: ThreadGroup) -> dict[str, Any]:
        found = load_rows(tmp_path, group, rows)
        assert found is not None
        assert_identical(content_of(found), rows_of(whole_content(5, rows), share(rows, group)))
        save_rows(tmp_path, found.step + 1, group, content_of(found), rows)
        return content_of(found)

    for ranks, step in ((then, 6), (first, 7)):
        outcomes = on_ranks(ranks, read_and_save)
        assert not [each for each in outcomes if isinstance(each, Exception)], outcomes
        found = load_latest(tmp_path)
        assert found is not None
        assert found.step == step
        assert_identical(content_of(found), whole_content(5, rows))


def test_one_rank_writes_what_a_process_without_ranks_does_byte_for_byte(tmp_path: Path) -> None:
    save_on(1, tmp_path / "one", 5)
    save_checkpoint(tmp_path / "other", 5, **whole_content(5))
    one, other = (tmp_path / name / "checkpoints" / "step-00000005" for name in ("one", "other"))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }
    assert json.loads((one / "manifest.json").read_bytes())["format_version"] == 1


def test_files_of_other_ranks_are_not_even_opened(tmp_path: Path) -> None:
    save_on(3, tmp_path, 5)
    path = tmp_path / "checkpoints" / "step-00000005"
    for name in ("rank-00000-of-00003.safetensors", "rank-00002-of-00003.safetensors"):
        (path / name).write_bytes(b"nothing")
    found = read_checkpoint(path, take=taken(RowRange(4, 5, 7)), verified=True)
    assert_identical(content_of(found), rows_of(whole_content(5), RowRange(4, 5, 7)))
    found = read_checkpoint(path, take=taken(RowRange(1, 7, 7, 6)), verified=True)
    assert_identical(content_of(found), rows_of(whole_content(5), RowRange(1, 7, 7, 6)))
    with pytest.raises(SafetensorError):
        read_checkpoint(path, take=taken(RowRange(2, 6, 7)), verified=True)


@pytest.mark.parametrize("mine", [RowRange(10, 14, 40), RowRange(1, 40, 40, 12)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_no_more_than_the_rows_that_are_taken_is_allocated(
    tmp_path: Path, ranks: int, mine: RowRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_on(ranks, tmp_path, 5, rows=40)
    allocated: list[int] = []
    empty = torch.empty

    def watched(shape: tuple[int, ...], **values: Any) -> torch.Tensor:
        allocated.append(shape[0])
        return empty(shape, **values)

    monkeypatch.setattr(torch, "empty", watched)
    found = read_checkpoint(tmp_path / "checkpoints" / "step-00000005", take=taken(mine))
    monkeypatch.undo()
    assert_identical(content_of(found), rows_of(whole_content(5, rows=40), mine))
    assert max(allocated) < 10
    assert allocated.count(4) >= len(TABLES)


def table_with_a_hole(path: Path, rows: int) -> None:
    """A model of one table (rows, 128) of zeros that the disk does not hold, but for the last two rows, of threes."""
    save_checkpoint(path.parents[1], 5, tensors={"model": {"table.weight": torch.zeros(2, 128)}}, state={})
    size = rows * 512
    told = {"table.weight": {"dtype": "F32", "shape": [rows, 128], "data_offsets": [0, size]}}
    header = json.dumps(told).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + size)
        file.seek(file.tell() + size - 1024)
        file.write(torch.full((256,), 3.0).numpy().tobytes())


def test_a_table_half_as_large_as_memory_costs_none_but_that_of_the_rows(tmp_path: Path) -> None:
    path, rows = tmp_path / "checkpoints" / "step-00000005", SYSTEM_BYTES // 2 // 512
    table_with_a_hole(path, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_checkpoint(path, take=lambda *_: RowRange(rows - 3, rows, rows), verified=True)
    assert found.tensors["model"]["table.weight"][:, 0].tolist() == [0.0, 3.0, 3.0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < rows // 2 // 8  # in kB: an eighth of the table


def test_a_file_that_the_system_will_not_map_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_on(2, tmp_path, 5)

    def refuse(file: Path, **_: Any) -> None:
        raise RuntimeError(f"unable to mmap 4398046511210 bytes from file <{file}>: Cannot allocate memory (12)")

    monkeypatch.setattr(trainer.records.sharded.reading, "safe_open", refuse)
    with pytest.raises(StorageError, match=r"model\.safetensors cannot be read on this machine"):
        read_checkpoint(tmp_path / "checkpoints" / "step-00000005", take=taken(RowRange(0, 3, 7)))


def test_rows_of_a_tensor_that_lies_transposed_do_not_bring_the_whole_with_them(tmp_path: Path) -> None:
    weight = torch.randn(3, 50).t()
    save_checkpoint(tmp_path, 5, tensors={"model": {"table.weight": weight}}, state={})
    path = tmp_path / "checkpoints" / "step-00000005"
    found = read_checkpoint(path, take=lambda *_: RowRange(7, 9, 50)).tensors["model"]["table.weight"]
    assert torch.equal(found, weight[7:9])
    assert found.untyped_storage().nbytes() == 4 * 2 * 3
    whole = read_checkpoint(path, take=lambda *_: None).tensors["model"]["table.weight"]
    assert whole.stride() == weight.stride()


def test_rows_of_another_tensor_are_refused(tmp_path: Path) -> None:
    save_on(2, tmp_path, 5)
    with pytest.raises(ValueError, match=r"table\.weight of model has 7 rows, and rows of 8"):
        read_checkpoint(tmp_path / "checkpoints" / "step-00000005", take=taken(RowRange(0, 4, 8)))
    for start, stop in ((-1, 3), (4, 3), (0, 8)):
        with pytest.raises(ValueError, match="of 7"):
            RowRange(start, stop, 7)


def flip_bit(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset % len(raw)] ^= 1 << (offset % 8)
    path.write_bytes(raw)


@pytest.mark.parametrize("file", ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "state.json"])
def test_damage_is_named_and_the_older_one_taken_on_all_ranks(tmp_path: Path, file: str) -> None:
    save_on(2, tmp_path, 4)
    save_on(2, tmp_path, 5)
    damaged = tmp_path / "checkpoints" / "step-00000005" / file
    original = damaged.read_bytes()
    for offset in (3, len(original) // 2, len(original) - 1):
        flip_bit(damaged, offset)
        damage = [health.damage for health in verify_checkpoints(tmp_path)]
        assert damage == [f"{file} does not match its hash", None]
        outcomes = on_ranks(2, lambda group: load_rows(tmp_path, group))
        for found in (*outcomes, load_latest(tmp_path)):
            assert found is not None
            assert (found.step, len(found.damaged)) == (4, 1)
            assert file in found.damaged[0]
        with pytest.raises(StorageError, match=f"is damaged: {file}"):
            read_checkpoint(damaged.parent)
        damaged.write_bytes(original)
    damaged.unlink()
    assert next(verify_checkpoints(tmp_path)).damage == f"{file} cannot be read (No such file or directory)"


def test_ranks_find_nothing_or_no_whole_one_together(tmp_path: Path) -> None:
    assert on_ranks(2, lambda group: load_rows(tmp_path, group)) == [None, None]
    save_on(2, tmp_path, 5)
    flip_bit(tmp_path / "checkpoints" / "step-00000005" / "state.json", 9)
    for error in on_ranks(2, lambda group: load_rows(tmp_path, group)):
        assert isinstance(error, StorageError)
        assert "rank 0 of 2: " in str(error)
        assert "no checkpoint is whole" in str(error)


def test_a_rank_that_cannot_read_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_on(2, tmp_path, 5)
    read = trainer.records.sharded.reading._Reader._read

    def read_on_a_bad_disk(self: Any, file: str, name: str, *place: Any) -> torch.Tensor:
        tensor = read(self, file, name, *place)
        if name == "table.weight" and len(tensor) == 3:  # of 7 rows, rank 1's
            raise OSError(5, "Input/output error", "rank-00001")
        return tensor

    monkeypatch.setattr(trainer.records.sharded.reading._Reader, "_read", read_on_a_bad_disk)
    for error in on_ranks(2, lambda group: load_rows(tmp_path, group)):
        assert isinstance(error, StorageError)
        assert (error.errno, error.strerror) == (5, "rank 1 of 2: Input/output error")


def test_a_newer_format_is_refused_on_all_ranks_and_this_one_by_older_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_on(2, tmp_path, 5)
    monkeypatch.setattr(trainer.records.content, "SHARDED_VERSION", 2)
    with pytest.raises(InputError, match=r"checkpoint format 3.*reads up to 2; update"):
        load_latest(tmp_path)
    for error in on_ranks(2, lambda group: load_rows(tmp_path, group)):
        assert isinstance(error, InputError)
        assert "checkpoint format 3" in str(error)


def test_sizes_count_all_files_once(tmp_path: Path) -> None:
    save_on(3, tmp_path, 5, rows=1000)
    tables = 1000 * (3 * 4 + 3 * 2 + 3 * 4 + 3 * 4 + 8)
    path = tmp_path / "checkpoints" / "step-00000005"
    assert folder_bytes(path) == sum(each.stat().st_size for each in path.iterdir())
    assert tables < folder_bytes(path) < 1.2 * tables + 8000


def test_rank_0_makes_room_and_all_know_what_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3, 4):
        save_on(2, tmp_path, step)
    monkeypatch.setattr(trainer.records.checkpoint, "free_bytes", lambda _: 0)
    one = folder_bytes(tmp_path / "checkpoints" / "step-00000001")
    deleted = ["step-00000001", "step-00000002"]
    assert on_ranks(2, lambda group: make_room_on_ranks(tmp_path, one + 1, group=group)) == [deleted] * 2
    assert names_in(tmp_path) == ["step-00000003", "step-00000004"]
    monkeypatch.setattr(trainer.records.checkpoint, "make_room", lambda *_: 1 / 0)
    dying, other = on_ranks(2, lambda group: make_room_on_ranks(tmp_path, one, group=group))
    assert isinstance(dying, ZeroDivisionError)
    assert isinstance(other, RankFailedError)
    assert "rank 0 of 2: ZeroDivisionError" in str(other)


def test_a_form_of_rows_alone_has_an_empty_file_beside_it(tmp_path: Path) -> None:
    save_on(2, tmp_path, 5)
    empty = tmp_path / "empty.safetensors"
    save_file({}, empty)
    assert (tmp_path / "checkpoints" / "step-00000005" / "snapshots.safetensors").read_bytes() == empty.read_bytes()
