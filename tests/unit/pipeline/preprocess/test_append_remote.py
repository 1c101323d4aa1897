"""Appending to a folder in an object store: what is listed there is there, whoever dies or comes between."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pyarrow.fs import FileSystem

from pipeline.errors import FetchError, InputError, StorageError
from pipeline.preprocess import PreprocessConfig, Summary, command, forecast, preprocess
from pipeline.preprocess.generations import RemoteOut
from pipeline.shards import Manifest, RemoteFolder, verify_data
from tests.logs import folder_bytes, write_log
from tests.store import SECRET, Store, serve


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    pytest.importorskip("moto.server", reason="moto serves the store; it is part of the extra `dev`")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with serve("clicks") as store:
            yield store


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the folder is to be, on a store or behind a slow mount; with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.shards.remote.PAUSES_SECONDS", ())
    if request.param == "file":
        return (tmp_path / "remote").as_uri()
    return request.getfixturevalue("store").uri(f"clicks/{tmp_path.name}")


@pytest.fixture
def days(tmp_path: Path) -> list[Path]:
    return [write_log(tmp_path / f"day_{day}.tsv", 80 + day, seed=day) for day in range(4)]


def append(out: Path | str, *sources: Path, **options: Any) -> Summary:
    config = PreprocessConfig(
        sources=tuple(map(str, sources)), out=Path(out), append=True, rows_per_shard=30, named=frozenset(), **options
    )
    return preprocess(config)


def stand_in(uri: str) -> Path:
    return RemoteOut(uri).stand_in


def contents(uri: str) -> list[list[tuple[str, str]]]:
    """Name and hash of the shards of each generation."""
    return [
        [(shard.path, shard.sha256) for split in each.splits.values() for shard in split.shards]
        for each in Manifest.load(uri).generations
    ]


def test_a_remote_folder_gets_what_a_local_one_gets(tmp_path: Path, uri: str, days: list[Path]) -> None:
    for day in days[:3]:
        append(tmp_path / "local", day)
        summary = append(uri, day)
        assert not summary.nothing_to_do
        assert (summary.added.index if summary.added else 0) == len(Manifest.load(uri).generations) - 1
    assert contents(uri) == contents(str(tmp_path / "local"))
    assert Manifest.load(uri).statistics == Manifest.load(tmp_path / "local").statistics
    report = verify_data(uri)
    assert report.whole
    assert report.unlisted == ()
    assert append(uri, *days[:3]).nothing_to_do
    shards = [path for path in stand_in(uri).rglob("*.parquet") if path.is_file()]
    assert shards == []  # what is uploaded is not kept twice


def test_another_machine_goes_on_where_the_last_one_was(
    tmp_path: Path, uri: str, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(uri, days[0])
    append(uri, days[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert append(uri, days[1]).nothing_to_do
    append(uri, days[2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    append(uri, days[3])
    manifest = Manifest.load(uri)
    assert [each.rows for each in manifest.generations] == [80, 81, 82, 83]
    assert manifest.statistics["columns"]["C1"]["distinct"] is not None
    assert verify_data(uri).whole


@pytest.mark.parametrize("failing", [1, 4, 5, 6])
def test_an_upload_that_fails_anywhere_is_finished_by_the_same_command(
    uri: str, days: list[Path], failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The addition is three shards, the registers and the manifest; a sixth write is not made."""
    append(uri, days[0])
    before = contents(uri)
    write, writes = RemoteFolder.write, 0

    def fail(folder: RemoteFolder, name: str, file: Path) -> None:
        nonlocal writes
        writes += 1
        if writes == failing:
            raise FetchError(f"{name} cannot be written")
        write(folder, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", fail)
        if failing <= 5:
            with pytest.raises(FetchError, match="cannot be written"):
                append(uri, days[1])
            assert contents(uri) == before
            assert verify_data(uri).whole
        else:
            append(uri, days[1])
    summary = append(uri, days[1])
    assert summary.nothing_to_do == (failing > 5)
    assert [each.rows for each in Manifest.load(uri).generations] == [80, 81]
    assert verify_data(uri).lines() == []


def test_what_was_encoded_and_is_lost_before_it_is_uploaded_is_encoded_again(
    uri: str, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: RemoteFolder, name: str, file: Path) -> None:
        raise FetchError(f"{name} cannot be written")

    append(uri, days[0])
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", fail)
        with pytest.raises(FetchError):
            append(uri, days[1])
    next(stand_in(uri).rglob("gen-*.parquet")).unlink()
    append(uri, days[1])
    assert [each.rows for each in Manifest.load(uri).generations] == [80, 81]
    assert verify_data(uri).whole


def test_a_folder_that_was_removed_since_is_made_anew(
    tmp_path: Path, uri: str, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an addition to it was begun: what is encoded of that is of no folder any more."""
    append(uri, days[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(command, "list_generation", full)
        with pytest.raises(StorageError, match="No space left"):
            append(uri, days[1])
    assert (stand_in(uri) / ".append/done").is_dir()
    files, path = FileSystem.from_uri(uri)
    files.delete_dir(path)
    for day in days[2:]:
        append(uri, day)
        append(tmp_path / "local", day)
    assert contents(uri) == contents(str(tmp_path / "local"))
    assert verify_data(uri).whole


def test_of_two_machines_at_once_one_is_refused_and_nothing_is_damaged(
    tmp_path: Path, uri: str, days: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(uri, days[0])
    fetch, calls = RemoteOut._fetch, 0

    def interfere(remote: RemoteOut) -> bytes | None:
        nonlocal calls
        calls += 1
        if calls == 2:  # before the manifest is replaced
            with monkeypatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
                append(uri, days[2])
        return fetch(remote)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteOut, "_fetch", interfere)
        with pytest.raises(InputError, match="was changed by another command meanwhile; run the same command again"):
            append(uri, days[1])
    assert [each.rows for each in Manifest.load(uri).generations] == [80, 82]
    assert verify_data(uri).whole
    append(uri, days[1])
    assert [each.rows for each in Manifest.load(uri).generations] == [80, 82, 81]
    assert verify_data(uri).whole


def test_what_is_said_names_the_remote_folder_and_no_secret(uri: str, days: list[Path]) -> None:
    append(uri, days[0])
    address = str(RemoteFolder(uri))
    assert append(uri, *days[:2]).notices == (f"1 of 2 files are in {address} already and left out",)
    with pytest.raises(InputError) as caught:
        append(uri, days[2], compression="zstd")
    assert str(caught.value).startswith(f"{address} was made with compression lz4, not zstd")
    with FileLock(stand_in(uri).with_suffix(".lock")), pytest.raises(InputError, match="by another command") as caught:
        append(uri, days[2])
    assert address in str(caught.value)
    with pytest.raises(InputError, match="is not a local folder; add --append") as caught:
        preprocess(PreprocessConfig(sources=(str(days[0]),), out=Path(uri)))
    assert SECRET not in str(caught.value)


def test_the_forecast_of_a_remote_folder_is_of_what_is_new(tmp_path: Path, uri: str, days: list[Path]) -> None:
    config = PreprocessConfig(sources=tuple(map(str, days[:2])), out=Path(uri), append=True)
    assert forecast(config, measure_seconds=0.01).sources == (str(days[0]), str(days[1]))
    append(uri, days[0])
    assert forecast(config, measure_seconds=0.01).sources == (str(days[1]),)
    assert folder_bytes(tmp_path / "cache").keys()
