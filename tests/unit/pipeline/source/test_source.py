"""Sources: which files a name stands for, in which order, and their bytes whatever they are packed in."""

from __future__ import annotations

import doctest
import gzip
import io
import itertools
import os
import sys
from pathlib import Path

import pytest
import zstandard

import pipeline.source
from pipeline.addresses import without_secrets
from pipeline.errors import InputError
from pipeline.schema import CRITEO
from pipeline.source.find import Found, find_sources
from pipeline.source.source import Source
from tests.logs import write_log

TEXT = b"".join(b"line %d\n" % i for i in range(200_000))


def read_all(source: Source, chunk: int = 100_000) -> bytes:
    content = bytearray()
    view = memoryview(bytearray(chunk))
    with source.open() as stream:
        while True:
            count = stream.fill(view)
            content += view[:count]
            if count < chunk:
                return bytes(content)


def names(found: Found) -> list[str]:
    return [source.label for source in found.sources]


@pytest.fixture
def days(tmp_path: Path) -> Path:
    for name in ("day_10.tsv", "day_2.tsv", "day_0.tsv", "README.md", ".hidden"):
        (tmp_path / name).write_bytes(b"1\n")
    (tmp_path / "deeper").mkdir()
    return tmp_path


def test_the_files_of_a_folder_or_pattern_come_in_natural_order(days: Path) -> None:
    expected = ["day_0.tsv", "day_2.tsv", "day_10.tsv"]
    for given in (days, str(days / "day_*"), days.as_uri(), days.as_uri() + "/day_*.tsv"):
        assert names(find_sources([given])) == expected


def test_files_named_one_by_one_come_in_the_order_given(days: Path) -> None:
    for given in itertools.permutations(["day_0.tsv", "day_2.tsv", "day_10.tsv"]):
        assert names(find_sources([days / name for name in given])) == list(given)
    (days / "late").mkdir()
    (days / "late/day_1.tsv").write_bytes(b"1\n")
    assert names(find_sources([days / "late", days]))[0] == "day_1.tsv"
    assert names(find_sources([days, days / "late"]))[-1] == "day_1.tsv"


def test_the_order_in_which_a_shell_lists_files_is_pointed_out(days: Path) -> None:
    as_listed = sorted(str(path) for path in days.glob("day_*"))
    found = find_sources(as_listed)
    assert names(found) == ["day_0.tsv", "day_10.tsv", "day_2.tsv"]
    (notice,) = found.notices
    assert "day_10.tsv before day_2.tsv, as a shell lists them" in notice
    assert find_sources([days / "day_10.tsv", days / "day_0.tsv"]).notices == ()
    assert find_sources([days / "day_0.tsv", days / "day_2.tsv"]).notices == ()


def test_files_of_a_folder_that_are_left_out_are_named(days: Path) -> None:
    for name in ("_SUCCESS", ".crc", "sample.json", "day_3.2024-01-04", "day_4.TSV", "day_5.tsv.GZ", "_day_6.tsv"):
        (days / name).write_bytes(b"1\n")
    (days / "day_7.tsv").symlink_to(days / "gone")
    for given in (days, days.as_uri()):
        found = find_sources([given])
        assert names(found) == ["day_0.tsv", "day_2.tsv", "day_4.TSV", "day_5.tsv.GZ", "day_10.tsv"]
        (notice,) = found.notices
        left_out = ["README.md", "_day_6.tsv", "day_3.2024-01-04", "deeper (a folder)"]
        assert all(name in notice for name in left_out)
        assert "SUCCESS" not in notice
        assert "sample.json" not in notice
        assert ".hidden" not in notice
    assert "day_7.tsv (a link to nothing)" in find_sources([days]).notices[0]


def test_a_relative_name_becomes_absolute(days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(days)
    assert find_sources(["day_2.tsv"]).sources[0].name == str(days / "day_2.tsv")
    assert names(find_sources(["day_?.tsv"])) == ["day_0.tsv", "day_2.tsv"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_bytes_come_out_whatever_they_are_packed_in(tmp_path: Path, ending: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    path = tmp_path / f"log.tsv{ending}"
    path.write_bytes(pack(TEXT))
    for name in (path, path.as_uri()):
        (source,) = find_sources([name]).sources
        assert read_all(source) == TEXT
        assert source.size == path.stat().st_size
    assert find_sources([path]).sources[0].is_plain_local() == (ending == "")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_members_one_after_another_are_one_stream(tmp_path: Path, pack) -> None:
    path = tmp_path / "log"
    path.write_bytes(pack(TEXT[:1000]) + pack(TEXT[1000:]))
    assert read_all(find_sources([path]).sources[0]) == TEXT


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("kept", [0.3, 0.9, -3])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, pack, kept: float) -> None:
    packed = pack(TEXT)
    path = tmp_path / "log.packed"
    path.write_bytes(packed[: int(kept * len(packed)) if kept > 0 else int(kept)])
    with pytest.raises(
        InputError, match=r"log\.packed: the compressed file is truncated or damaged .*; fetch it again"
    ):
        read_all(find_sources([path]).sources[0])


def test_a_damaged_gzip_is_an_error_that_names_it(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2] ^= 0x10
    path = tmp_path / "log.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"log\.gz: the compressed file is truncated or damaged"):
        read_all(find_sources([path]).sources[0])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, pack) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pack(TEXT))))
    (source,) = find_sources(["-"]).sources
    assert read_all(source) == TEXT
    assert source.size is None


def test_what_stands_for_nothing_is_said_in_one_line(days: Path) -> None:
    (days / "empty.tsv").touch()
    os.mkfifo(days / "fifo")
    for given, why in (
        ([days / "none.tsv"], "none.tsv does not exist; check the path"),
        ([str(days / "none*")], "matches no file; check the pattern"),
        ([days / "deeper"], "holds no log files"),
        ([days / "empty.tsv"], "empty.tsv is empty"),
        ([days / "fifo"], "is not a regular file"),
        ([days / "day_0.tsv", days], "day_0.tsv is named twice"),
        ([""], "an empty name"),
        (["~nobody-of-this-name/x"], "does not exist"),
        (["a\0b"], "cannot be read"),
        ([days / "fifo*"], "matches no file, and fifo (no regular file) is left out"),
        (["-", days / "day_0.tsv"], "cannot be combined"),
        (["nosuch://bucket/key"], "cannot be opened"),
        ([(days / "none").as_uri()], "names no log file"),
        ([], "no source was named"),
    ):
        with pytest.raises(InputError) as caught:
            find_sources(given)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_example_of_the_room_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    write_log(tmp_path / "log/day_10.tsv", 40)
    write_log(tmp_path / "log/day_2.tsv", 30, seed=1)
    names = {name: getattr(pipeline.source, name) for name in pipeline.source.__all__} | {"log_format": CRITEO}
    example = doctest.DocTestParser().get_doctest(pipeline.source.__doc__ or "", names, "pipeline.source", None, 0)
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (4, 0)


def test_a_changed_file_is_another_source(days: Path) -> None:
    (source,) = find_sources([days / "day_0.tsv"]).sources
    assert source.refresh() == source
    os.utime(days / "day_0.tsv", ns=(1, 1))
    assert source.refresh() != source


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/data", "s3://bucket/data"),
        ("s3://key:se/cret@bucket/t=10:00@eu?region=x", "s3://bucket/t=10:00@eu?region=x"),
        ("s3://key:12/cret@bucket", "s3://bucket"),
        ("hdfs://user:secret@nn:8020/u@x", "hdfs://nn:8020/u@x"),
        ("abfs://:secret@account/data", "abfs://account/data"),
    ],
)
def test_secrets_are_left_out(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/t=10:00@eu/data",
        "hdfs://nn:8020/u@x/data",
        "gs://anonymous@b/d",
        "s3://bucket/data?endpoint_override=127.0.0.1:1&user=a@b",
        "file:///data/t=10:00@eu",
    ],
)
def test_an_address_without_secrets_stays_as_it_is(uri: str) -> None:
    assert without_secrets(uri) == uri
