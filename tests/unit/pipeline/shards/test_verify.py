"""Verifying and describing a data folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FetchError, InputError, StorageError
from pipeline.preprocess import dry_run
from pipeline.preprocess.command import preprocess
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.dry_run import forecast
from pipeline.preprocess.encoder import encode_part
from pipeline.shards.manifest import Manifest, Shard
from pipeline.shards.overview import inspect_data
from pipeline.shards.verify import ShardReport, VerifyProgress, verify_data, verify_shard
from tests.logs import log_lines, write_log


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = log_lines(300)
    lines[5] = b"no row"
    (tmp_path / "log.tsv").write_bytes(b"\n".join(lines))
    config = PreprocessConfig(
        sources=(str(tmp_path / "log.tsv"),), out=tmp_path / "data", rows_per_shard=100, max_rejects="1"
    )
    return preprocess(config).manifest.root


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_a_whole_folder_is_whole(data: Path) -> None:
    seen: list[VerifyProgress] = []
    report = verify_data(data, report=seen.append)
    assert report.whole
    assert report.rows == report.readable_rows == 299
    assert report.lines() == []
    assert (seen[-1].shards, seen[-1].bytes, seen[-1].damaged) == (5, seen[-1].total_bytes, 0)


def test_what_is_damaged_is_named(data: Path) -> None:
    flip(data / "train/part-00001.parquet", 300)
    (data / "test/part-00000.parquet").unlink()
    (data / "train/part-00002.parquet.tmp").touch()
    flip(data / "rejects/00000-log.tsv.tsv", 0)
    report = verify_data(data)
    assert not report.whole
    assert report.lines() == [
        "train/part-00001.parquet differs from what was written; 0 of its 100 rows can be read",
        "test/part-00000.parquet is missing; 0 of its 30 rows can be read",
        "rejects/00000-log.tsv.tsv is missing or differs; no training row depends on it",
        "train/part-00002.parquet.tmp is not listed in the manifest; nothing reads it",
    ]
    assert report.readable_rows == 169


def test_a_folder_without_a_whole_manifest_cannot_be_verified(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a data folder"):
        verify_data(tmp_path)
    flip(data / "manifest.json", 50)
    with pytest.raises(StorageError, match=r"manifest\.json is damaged"):
        verify_data(data)


@pytest.mark.parametrize("error", [FetchError("no route"), KeyboardInterrupt()])
def test_an_error_ends_it_without_the_shards_that_wait(
    data: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    begun: list[str] = []
    raised = threading.Event()

    def fail_first(manifest: Manifest, shard: Shard) -> ShardReport:
        begun.append(shard.path)
        if len(begun) == 1:
            raise error
        raised.wait(10)
        return verify_shard(manifest, shard)

    monkeypatch.setattr("pipeline.shards.verify.usable_cores", lambda: 2)
    monkeypatch.setattr("pipeline.shards.verify.verify_shard", fail_first)
    pools = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    with pytest.raises(type(error)):
        verify_data(data)
    raised.set()
    for thread in set(threading.enumerate()) - set(pools):
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(60)
    assert len(begun) < 5


def test_the_overview_agrees_with_the_log(data: Path) -> None:
    overview = inspect_data(data)
    (whole,) = overview.data
    assert (whole["rows"], whole["rejected_rows"], whole["shards"]) == (299, 1, 5)
    assert [(row["split"], row["rows"], row["shards"]) for row in overview.splits] == [
        ("train", 239, 3),
        ("validation", 30, 1),
        ("test", 30, 1),
    ]
    assert [row["column"] for row in overview.columns][:2] == ["I1", "I2"]
    assert all(row.keys() == overview.columns[0].keys() for row in overview.columns)


def test_a_forecast_is_near_what_happens_and_leaves_nothing(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.tsv", 5000)
    config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data", workers=2, compression="none")
    expected = forecast(config)
    assert not (tmp_path / "data").exists()
    manifest = preprocess(config).manifest
    assert expected.rows == manifest.rows
    assert expected.split == "tail"
    assert expected.source_bytes == log.stat().st_size
    assert expected.disk_bytes == pytest.approx(inspect_data(manifest.root).data[0]["bytes"], rel=0.5)
    assert expected.splits == {name: split.rows for name, split in manifest.splits.items()}
    assert expected.shards == 3
    assert expected.free_bytes > 0
    counting = expected.seconds - expected.rows / expected.rows_per_second
    assert 0 < counting < expected.seconds  # the lines are counted first, which takes no more than encoding them


def test_a_forecast_leaves_out_what_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes a second here, and a minute more the first time, as if it had to be compiled."""
    now, calls = [0.0], [0]

    def encode(*arguments: Any) -> Any:
        calls[0] += 1
        now[0] += 61.0 if calls[0] == 1 else 1.0
        return encode_part(*arguments)

    monkeypatch.setattr(dry_run, "encode_part", encode)
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: now[0])
    log = write_log(tmp_path / "log.tsv", 50)
    expected = forecast(PreprocessConfig(sources=(str(log),), out=tmp_path / "data", split="train", workers=1))
    assert (expected.rows, expected.seconds, expected.rows_per_second) == (50, 1.0, 50.0)


@pytest.mark.parametrize(("split", "counted"), [("tail", True), ("train", False)])
def test_lines_are_counted_where_splits_depend_on_them(tmp_path: Path, split: Any, counted: bool) -> None:
    log = write_log(tmp_path / "log.tsv", 50)
    config = PreprocessConfig(sources=(str(log),), out=tmp_path / "data", split=split)
    expected = forecast(config)
    assert (expected.seconds > expected.rows / expected.rows_per_second * 1.0001) == counted


def test_the_last_of_several_days_is_forecast_as_it_is_split(tmp_path: Path) -> None:
    lines = log_lines(500, seed=7)
    logs = [str(tmp_path / f"day_{day}.tsv") for day in range(3)]
    for day, log in enumerate(logs):  # days of one size, other rows first
        Path(log).write_bytes(b"".join(line + b"\n" for line in lines[day:] + lines[:day]))
    config = PreprocessConfig(sources=tuple(logs), out=tmp_path / "data", rows_per_shard=200)
    expected = forecast(config)
    manifest = preprocess(config).manifest
    assert expected.splits == {name: split.rows for name, split in manifest.splits.items()}
    assert expected.shards == sum(len(split.shards) for split in manifest.splits.values())


def test_standard_input_has_no_forecast(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be forecast"):
        forecast(PreprocessConfig(sources=("-",), out=tmp_path / "data"))
