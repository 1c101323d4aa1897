"""JSON-lines files that a checkpoint cuts back, whatever a kill or a full disk left of them."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.errors import StorageError
from trainer.records.lines import Extent, LineIndex
from trainer.records.records import Records, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.jsonl"


def test_one_object_a_line_in_order(path: Path) -> None:
    records = Records(path)
    for step in range(3):
        records.append({"step": step, "phases": {"forward": 0.5}})
    records.close()
    assert path.read_bytes().count(b"\n") == 3
    assert list(read_records(path)) == [{"step": step, "phases": {"forward": 0.5}} for step in range(3)]


def test_numbers_that_are_not_finite_become_null_at_any_depth(path: Path) -> None:
    records = Records(path)
    records.append({"loss": math.nan, "biased": {"relative": -math.inf}, "groups": [{"slope": math.nan}, 1.5]})
    records.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line == {"loss": None, "biased": {"relative": None}, "groups": [{"slope": None}, 1.5]}


def test_flush_lets_others_see_what_is_there(path: Path) -> None:
    records = Records(path)
    records.append({"step": 0})
    assert list(read_records(path)) == []
    records.flush()
    assert list(read_records(path)) == [{"step": 0}]
    records.close()


def test_cut_goes_back_to_a_length_and_goes_on_from_there(path: Path) -> None:
    records = Records(path)
    for step in range(4):
        records.append({"step": step})
        if step == 1:
            length = records.length()
    records.close()

    records = Records(path)
    records.cut(length)
    records.append({"step": "again"})
    assert records.length() == path.stat().st_size
    records.close()
    assert [record["step"] for record in read_records(path)] == [0, 1, "again"]


def test_cut_forgets_what_is_still_in_the_buffer(path: Path) -> None:
    records = Records(path)
    records.append({"step": 0})
    records.cut(0)
    records.close()
    assert path.read_bytes() == b""


def test_cut_never_lengthens_a_file(path: Path) -> None:
    records = Records(path)
    records.append({"step": 0})
    records.cut(10_000)
    records.close()
    assert list(read_records(path)) == [{"step": 0}]


@pytest.mark.parametrize("begun", [b'{"step": 2', b'{"text": "' + b"x" * 10_000])
@pytest.mark.parametrize("whole", [b"", b'{"step": 1}\n'])
def test_a_line_that_a_kill_left_begun_is_forgotten(path: Path, whole: bytes, begun: bytes) -> None:
    path.write_bytes(whole + begun)
    assert len(list(read_records(path))) == whole.count(b"\n")
    records = Records(path)
    records.append({"step": 3})
    records.close()
    assert path.read_bytes() == whole + b'{"step": 3}\n'


@pytest.mark.parametrize("broken", [b'{"step": 1', b"7", b"[]", b"\xff\xfe", b'{"step": NaN}'])
def test_a_damaged_line_is_an_error_or_told_by_its_number(path: Path, broken: bytes) -> None:
    path.write_bytes(b'{"step": 0}\n\n' + broken + b'\n{"step": 2}\n{"st')
    with pytest.raises(StorageError, match=r"steps\.jsonl: line 3 is damaged"):
        list(read_records(path))
    damaged: list[int] = []
    assert list(read_records(path, damaged=damaged.append)) == [{"step": 0}, {"step": 2}]
    assert damaged == [3, 5]


def test_a_missing_file_has_no_records(path: Path) -> None:
    assert list(read_records(path)) == []


class Disk:
    """Stands in for `os.write`: `room` bytes are left on the disk, and what doesn't fit is cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_holds_nobody_up_and_gets_every_line_once_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, disk = Records(path), Disk(monkeypatch)
    for step in range(10):
        records.append({"step": step})
    records.flush()
    assert (records.waiting, records.lost) == (10, 0)
    assert isinstance(records.trouble, OSError)
    assert records.trouble.errno == errno.ENOSPC
    assert records.trouble.filename == str(path)
    disk.room = 30  # two lines and a half
    records.flush()
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n', "a line that was cut short was left in the file"
    assert records.waiting == 8
    disk.room = 10_000
    records.append({"step": 10})
    records.flush()
    assert records.trouble is None
    assert [record["step"] for record in read_records(path)] == list(range(11))
    assert records.length() == path.stat().st_size
    assert records.extent == (10, 11)
    assert records.take_notices() == []


def test_a_begun_line_that_cannot_be_cut_off_at_once_is_before_the_next_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, disk = Records(path), Disk(monkeypatch)
    truncate = os.ftruncate

    def fails(file: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", fails)
    for step in range(3):
        records.append({"step": step})
    disk.room = 17
    records.flush()
    assert path.read_bytes() == b'{"step": 0}\n{"ste'
    monkeypatch.setattr(os, "ftruncate", truncate)
    disk.room = 1000
    records.flush()
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]


def test_more_than_memory_holds_loses_the_oldest_and_says_so_when_it_can_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, disk = Records(path, limit_bytes=100), Disk(monkeypatch)
    for step in range(20):
        records.append({"step": step})
        records.flush()
    assert (records.lost, records.waiting) == (13, 7)
    disk.room = 10_000
    records.flush()
    assert [record["step"] for record in read_records(path)] == list(range(13, 20))
    [notice] = records.take_notices()
    assert notice.startswith("13 steps between step 0 and step 12 are lost: steps.jsonl could not be written")
    assert records.extent == (19, 7), "a resume would miss what is known to be lost"


def test_a_disk_that_does_not_sync_is_trouble_and_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(path)
    records.append({"step": 0})

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    records.sync()
    assert records.trouble is not None
    assert records.trouble.filename == str(path)
    records.close()


@pytest.mark.parametrize("how", ["cut", "emptied", "deleted", "rotated"])
def test_a_file_cut_behind_its_back_is_told_and_goes_on(path: Path, how: str) -> None:
    records = Records(path, one_a_step=True)
    records.cut(0)
    for step in range(10):
        records.append({"step": step})
    records.flush()
    match how:
        case "cut":
            os.truncate(path, 30)
        case "emptied":
            os.truncate(path, 0)
        case "deleted":
            path.unlink()
        case _:
            path.rename(path.with_suffix(".1"))
    records.append({"step": 10})
    records.flush()
    left = [0, 1] if how == "cut" else []
    assert [record["step"] for record in read_records(path)] == [*left, 10]
    [notice] = records.take_notices()
    assert notice.startswith(f"steps.jsonl lacks {10 - len(left)} of the 10 steps that were written to it")
    records.append({"step": 11})
    records.flush()
    assert records.take_notices() == [], "told twice"
    assert records.extent == (11, len(left) + 2)
    assert records.length() == path.stat().st_size


@pytest.mark.parametrize("one_a_step", [True, False])
def test_a_cut_says_what_is_missing_of_what_the_checkpoint_counts(path: Path, one_a_step: bool) -> None:
    records = Records(path, one_a_step=one_a_step)
    for step in range(10):
        records.append({"step": step})
    length, extent = records.length(), records.extent
    records.append({"step": 10})
    records.close()

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[5:]))  # as of a file that was damaged and cleaned up by hand
    records = Records(path, one_a_step=one_a_step)
    records.cut(length, extent)
    assert [record["step"] for record in read_records(path)] == [0, 1, 5, 6, 7, 8, 9]
    [notice] = records.take_notices()
    assert notice.startswith("steps.jsonl lacks 3 of the 10 steps that were written to it")
    assert records.extent == (9, 7), "the next resume would say it again"


def test_what_is_never_cut_keeps_even_what_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(path, never_cut=True)
    for step in range(4):
        records.append({"step": step})
    length = records.length()
    disk = Disk(monkeypatch)
    records.append({"step": 4})
    counted = records.extent
    records.append({"step": 5})
    records.cut(length, counted)
    disk.room = 10_000
    records.flush()
    assert [record["step"] for record in read_records(path)] == list(range(6))
    assert records.take_notices() == []
    assert records.extent == (5, 6)
    records.cut(0)
    assert records.length() == path.stat().st_size > length
    records.close()


def test_a_cut_of_an_earlier_version_tells_missing_bytes(path: Path) -> None:
    records = Records(path)
    records.append({"step": 0})
    records.cut(1_000)
    [notice] = records.take_notices()
    assert notice.startswith("steps.jsonl is 988 bytes shorter than at the checkpoint")


def test_evaluations_of_one_step_are_told_apart_by_length(path: Path) -> None:
    """Two splits before the checkpoint and one after it, all of the same step."""
    records = Records(path)
    for split in ("train", "validation"):
        records.append({"step": 4, "split": split})
    length, extent = records.length(), records.extent
    records.append({"step": 4, "split": "train"})
    records.close()
    records = Records(path)
    records.cut(length, extent)
    assert [record["split"] for record in read_records(path)] == ["train", "validation"]
    assert records.take_notices() == []


def halved(path: Path, index: LineIndex) -> Callable[[BinaryIO], None]:
    """Writes every other line of what `index` has seen."""
    content = path.read_bytes()[: int(index.end[-1])]
    return lambda out: out.writelines(content.splitlines(keepends=True)[::2])


@pytest.fixture
def rewriting(path: Path) -> tuple[Records, Callable[[], None]]:
    """Records of 10 steps on disk, and the work of halving them."""
    records = Records(path, one_a_step=True)
    for step in range(10):
        records.append({"step": step})
    work = records.rewriting(lambda index: halved(path, index))
    assert work is not None
    return records, work


def test_what_is_appended_while_a_file_is_rewritten_waits_and_comes_behind(
    path: Path, rewriting: tuple[Records, Callable[[], None]]
) -> None:
    records, work = rewriting
    before, length = path.read_bytes(), records.length()
    for step in (10, 11):
        records.append({"step": step})
        records.flush()
    assert path.read_bytes() == before
    assert (records.waiting, records.extent) == (2, (11, 12))
    assert records.length() == length + len(b'{"step": 10}\n{"step": 11}\n')
    assert records.rewriting(lambda index: halved(path, index)) is None, "one at a time"
    work()
    assert [record["step"] for record in read_records(path)] == [0, 2, 4, 6, 8, 10, 11]
    records.append({"step": 12})
    records.close()
    assert [record["step"] for record in read_records(path)][-3:] == [10, 11, 12]
    assert records.take_notices() == []


@pytest.mark.parametrize("wait", [Records.sync, lambda records: records.cut(0, Extent(7, 8))], ids=["sync", "cut"])
def test_a_sync_and_a_cut_wait_for_a_file_that_is_rewritten(
    path: Path, monkeypatch: pytest.MonkeyPatch, wait: Callable[[Records], None]
) -> None:
    """Who syncs, for a checkpoint, relies on all that was appended; who cuts, on the lines that there are."""
    records, waiting = Records(path, one_a_step=True), threading.Event()
    wait_for = records._lock.wait_for

    def seen(condition: Callable[[], bool], timeout: float | None = None) -> bool:
        if not condition():
            waiting.set()
        return wait_for(condition, timeout)

    monkeypatch.setattr(records._lock, "wait_for", seen)
    thread = threading.Thread(target=wait, args=(records,))

    def plan(index: LineIndex) -> Callable[[BinaryIO], None]:
        def write(out: BinaryIO) -> None:
            records.append({"step": 10})
            thread.start()
            assert waiting.wait(60)
            halved(path, index)(out)

        return write

    for step in range(10):
        records.append({"step": step})
    records.rewrite(plan)
    thread.join()
    last = [record["step"] for record in read_records(path)][-2:]
    assert last == ([8, 10] if wait is Records.sync else [4, 6])
    records.close()


def test_a_file_that_is_closed_while_it_is_rewritten_stays_as_it_was(
    path: Path, rewriting: tuple[Records, Callable[[], None]]
) -> None:
    """Nobody waits for a disk that hangs when everything is to end at once."""
    records, work = rewriting
    records.append({"step": 10})
    records.close()
    work()
    assert [record["step"] for record in read_records(path)] == list(range(11))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_rewritten_goes_on(path: Path, rewriting: tuple[Records, Callable[[], None]]) -> None:
    records, work = rewriting
    (path.parent / f".{path.name}.partial").mkdir()
    records.append({"step": 10})
    work()
    records.sync()
    assert [record["step"] for record in read_records(path)] == list(range(11))
    [notice] = records.take_notices()
    assert "could not be made smaller" in notice
    records.close()
