"""A cache of shards on a disk that is full: older shards go, or row groups are read past it; the run is the same."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.shards.manifest import Manifest
from pipeline.shards.remote import RemoteFolder
from pipeline.shards.row_groups import file_in_memory, read_row_group, row_group_place
from pipeline.shards.shard_cache import FOLDER, CacheWriteError, Download, ShardCache
from pipeline.shards.shard_files import RemoteShards
from pipeline.stages import StageTotals
from tests.faults.runs import write_data, write_settings
from tests.faults.small_disk import fill, small_file_system
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.config import Config, load_config
from trainer.console import Console
from trainer.job import train
from trainer.job.observer import RunObserver
from trainer.loop import Stop
from trainer.records import read_records

READ_PAST = "row groups are read past the cache; further ones are counted in uncached_reads_total"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", mebibytes=1) as disk:
        yield disk


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The run from the local folder."""
    assert (
        train(load_config(settings(tmp_path, "local")), tmp_path / "whole", console=Console(quiet=True)) is Stop.BUDGET
    )
    return tmp_path / "whole"


def settings(tmp_path: Path, name: str, *, cache: Path | None = None, cache_bytes: int | None = None) -> Path:
    data = tmp_path / "data"
    if not data.exists():
        write_data(data)
    path = write_settings(tmp_path / f"{name}.toml", data)
    text = path.read_text().replace("read_threads = 1", "read_threads = 2")
    if cache is not None:
        more = f'cache_path = "{cache}"\n' + (f"cache_bytes = {cache_bytes}\n" if cache_bytes else "")
        text = text.replace(f'path = "{data}"\n', f'path = "{data.as_uri()}"\n{more}')
    path.write_text(text)
    return path


def begin(config: Config | Path, run: Path) -> Stop:
    return train(load_config(config) if isinstance(config, Path) else config, run, console=Console(quiet=True))


def same_run(run: Path, whole: Path) -> bool:
    (tensors, steps, _), (expected, all_steps, _) = lasting(run), lasting(whole)
    return steps == all_steps and same_bits(tensors, expected)


def warnings(run: Path) -> list[str]:
    return [line["message"] for line in read_records(run / "events.jsonl") if line["event"] == "warning"]


def uncached(run: Path) -> float:
    text = (run / "metrics.prom").read_text()
    return float(text.split("\nalphastream_uncached_reads_total ")[1].split()[0])


def largest_shard(tmp_path: Path) -> int:
    return max(path.stat().st_size for path in (tmp_path / "data").rglob("*.parquet"))


@pytest.fixture
def on_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has a function called after a step, given by the steps done then."""
    original, calls = RunObserver.on_step, dict[int, Callable[[], object]]()

    def on_step(self: RunObserver, record: dict, *rest: object) -> None:
        original(self, record, *rest)  # pyright: ignore[reportArgumentType, reportCallIssue]
        calls.get(record["step"] + 1, lambda: None)()

    monkeypatch.setattr(RunObserver, "on_step", on_step)
    return calls.__setitem__


@pytest.mark.parametrize("cache_bytes", [None, 1 << 20])
def test_a_disk_that_fills_up_costs_cached_shards_and_the_run_is_the_same(
    cache_bytes: int | None,
    tmp_path: Path,
    disk: Path,
    whole: Path,
    on_step: Callable[[int, Callable[[], object]], None],
) -> None:
    """With room for two shards: those used least recently go, and nothing has to be read past the cache."""
    config = settings(tmp_path, "far", cache=disk, cache_bytes=cache_bytes)
    room = 4 * (largest_shard(tmp_path) + 4096) + 8 * 4096  # of which a cache without a limit takes half
    fill(disk, leave_bytes=room + (128 << 10))  # its index is a few pages
    assert begin(config, tmp_path / "far") is Stop.BUDGET
    assert same_run(tmp_path / "far", whole)
    assert uncached(tmp_path / "far") == 0
    assert warnings(tmp_path / "far") == []


def test_row_groups_are_read_past_a_cache_without_room_and_into_it_once_there_is(
    tmp_path: Path, disk: Path, whole: Path, on_step: Callable[[int, Callable[[], object]], None]
) -> None:
    config = settings(tmp_path, "far", cache=disk, cache_bytes=1 << 20)
    seen = list[set[str]]()

    def shards() -> set[str]:
        return {path.name for path in (disk / FOLDER).iterdir() if path.suffix == ".parquet"}

    on_step(2, lambda: (take_all(disk), seen.append(shards())))
    on_step(30, lambda: (seen.append(shards()), (disk / "ballast").unlink()))
    assert begin(config, tmp_path / "far") is Stop.BUDGET
    assert same_run(tmp_path / "far", whole)
    assert uncached(tmp_path / "far") > 0
    (said,) = warnings(tmp_path / "far")
    assert READ_PAST in said
    assert "No space left on device" in said or "disk is full" in said
    assert len(shards()) > len(seen[1])


def take_all(disk: Path) -> None:
    """Everything that is free, and every shard that the cache holds."""
    for path in (disk / FOLDER).glob("*.parquet"):
        path.unlink()
    fill(disk, leave_bytes=0)


def test_a_restart_with_a_full_disk_trains(tmp_path: Path, disk: Path, whole: Path) -> None:
    path = settings(tmp_path, "far", cache=disk)
    path.write_text(path.read_text() + "[checkpoint]\nevery_steps = 20")
    config = load_config(path)
    assert begin(config, tmp_path / "far") is Stop.BUDGET
    take_all(disk)
    assert train(config, tmp_path / "far", console=Console(quiet=True), from_checkpoint=20) is Stop.BUDGET
    assert same_run(tmp_path / "far", whole)
    assert uncached(tmp_path / "far") > 0


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EROFS])
def test_a_quota_that_no_forecast_sees_makes_older_shards_go_then_row_groups_pass(
    number: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk says is free is more than may be written."""
    config = settings(tmp_path, "far", cache=tmp_path / "cache", cache_bytes=1 << 20)
    quota, write, lock = 3 * largest_shard(tmp_path), Download.write, threading.Lock()
    folder = tmp_path / "cache" / FOLDER
    refused = 0

    def write_within(self: Download, data: bytes) -> None:
        nonlocal refused
        with lock:
            found = 0
            for path in folder.iterdir():
                if path.suffix in {".parquet", ".part"}:
                    with suppress(FileNotFoundError):  # another thread gave it up
                        found += path.lstat().st_size
            if found + len(memoryview(data).cast("B")) > quota:
                refused += 1
                with self._cache._disk_errors():
                    raise OSError(number, os.strerror(number))
            write(self, data)

    monkeypatch.setattr(Download, "write", write_within)
    assert begin(config, tmp_path / "far") is Stop.BUDGET
    assert refused
    assert same_run(tmp_path / "far", whole)
    assert not list(folder.glob("*.part"))
    quota = 0
    config.write_text(config.read_text().replace("steps = 60", "steps = 70"))
    for path in folder.glob("*.parquet"):
        path.unlink()
    assert begin(config, tmp_path / "far") is Stop.BUDGET
    assert uncached(tmp_path / "far") > 0


def test_a_cache_that_cannot_be_begun_is_one_line(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk, leave_bytes=0)
    config = settings(tmp_path, "far", cache=disk)
    assert main(["train", str(config), "--run", str(tmp_path / "far")]) == 74
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "nothing can be written" in said
    assert "data.cache_path" in said


@pytest.mark.parametrize("sums", [True, False])
def test_what_is_read_past_the_cache_is_checked(sums: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest of an earlier version lists no checksum of a row group: the shard's own is then what tells."""
    data = write_data(tmp_path / "data")
    manifest = Manifest.load(data.as_uri())
    shards = [shard if sums else replace(shard, row_group_crc32=()) for shard in manifest.splits["train"].shards]
    assert isinstance(manifest.folder, RemoteFolder)
    cache = ShardCache(tmp_path / "cache", 1 << 20)

    def refuse(*_: object, **__: object) -> None:
        raise CacheWriteError("full")

    monkeypatch.setattr(cache, "begin", refuse)
    files = RemoteShards(manifest.folder, shards, cache, StageTotals())
    with closing(files):
        for number, damage in ((0, False), (1, True)):
            path = data / shards[number].path
            content = bytearray(path.read_bytes())
            offset, _ = row_group_place(shards[number], 1)
            if damage:
                content[offset + 7] ^= 1
                path.write_bytes(content)
            raw = np.empty(shards[number].row_group_bytes[1], np.uint8)
            with (
                pytest.raises(StorageError, match="it differs from what") if damage else nullcontext(),
                files.open(number, 1, 20) as file,
            ):
                read_row_group(file, shards[number], 1, raw)
                assert bytes(raw) == bytes(content[offset : offset + len(raw)])
        path = data / shards[2].path
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(StorageError, match=r"it has \d+ bytes instead of"):
            files.open(2, 1, 20)
        path.unlink()
        with pytest.raises(StorageError, match="it is missing"):
            files.open(2, 1, 20)


def test_a_file_in_memory_has_its_bytes_at_their_place() -> None:
    with file_in_memory(b"abc", offset=5, size=20) as file:
        assert os.fstat(file.fileno()).st_size == 20
        assert os.pread(file.fileno(), 3, 5) == b"abc"
