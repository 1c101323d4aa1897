"""JSON-lines files that a checkpoint cuts back, whatever a kill or a full disk left of them."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from pipeline.errors import StorageError
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


def test_an_error_of_writing_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(path)
    records.append({"step": 0})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failed:
        records.sync()
    assert failed.value.filename == str(path)
    records.close()
