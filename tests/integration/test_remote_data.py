"""Training on shards in an object store: the same run as from the local folder, whatever the cache holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.shards import Manifest
from pipeline.shards.remote import RemoteFolder
from tests.store import SECRET, Store, serve
from trainer.cli import main
from trainer.cli.entry import EXIT_INTERRUPTED
from trainer.records import read_records
from trainer.stall.trials import Stopwatch

pytest.importorskip("moto.server", reason="moto serves the store; it is part of the extra `dev`")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with serve("clicks") as store:
            yield store


@pytest.fixture(scope="module")
def sharded(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log in shards of 1,000 rows."""
    folder = tmp_path_factory.mktemp("sharded") / "data"
    assert main(["preprocess", str(small_log), "--out", str(folder), "--rows-per-shard", "1000"]) == 0
    return folder


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_records(run / "steps.jsonl")]


def evaluations(run: Path) -> list[tuple[int, str, float]]:
    return [(record["step"], record["split"], record["loss"]) for record in read_records(run / "evals.jsonl")]


def test_a_run_from_a_store_is_the_run_from_the_disk(
    write_config: Callable[..., Path],
    tmp_path: Path,
    sharded: Path,
    store: Store,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address = store.upload(sharded, "clicks/data")
    largest = max(shard.bytes for split in Manifest.load(sharded).splits.values() for shard in split.shards)
    config = write_config(data="batch_rows = 512\nshuffle_row_groups = 2")
    remote = ["--data.path", address, "--data.cache_path", str(tmp_path / "cache")]
    remote += ["--data.cache_bytes", str(5 * largest)]
    local = ["--data.path", str(sharded)]
    for run, options in (("far", remote), ("near", local)):
        for steps in ("10", "30"):
            command = ["train", str(config), "--run", str(tmp_path / run), "--budget.steps", steps, *options]
            assert main(command) == 0
    assert losses(tmp_path / "far") == losses(tmp_path / "near")
    assert evaluations(tmp_path / "far") == evaluations(tmp_path / "near")
    assert "download" in (tmp_path / "far/metrics.prom").read_text()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*/alphastream-shards/*.parquet")) <= 5 * largest
    written = b"".join(path.read_bytes() for path in (tmp_path / "far").rglob("*") if path.is_file())
    assert SECRET.encode() not in written
    assert b"s3://clicks/data?" in written
    capfd.readouterr()
    evaluate = ["evaluate", str(tmp_path / "far"), "--json", "--rows", "500"]
    assert main([*evaluate, "--data", address]) == 0
    assert main([*evaluate, "--data", str(sharded)]) == 0
    far, near = capfd.readouterr().out.splitlines()
    assert json.loads(far) == json.loads(near)
    for name, data in (("far", address), ("near", str(sharded))):
        predict = ["predict", str(tmp_path / "far"), data, "--split", "test", "--out", str(tmp_path / f"{name}.csv")]
        assert main(predict) == 0
    assert (tmp_path / "far.csv").read_bytes() == (tmp_path / "near.csv").read_bytes()
    for wrong in ([address, address], [address.replace("/data", "/none"), "--split", "test"]):
        capfd.readouterr()
        assert main(["predict", str(tmp_path / "far"), *wrong, "--out", str(tmp_path / "wrong.csv")]) == 2
        assert SECRET not in capfd.readouterr().err


def test_describing_and_verifying_what_was_uploaded(
    tmp_path: Path, sharded: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(sharded, tmp_path / "data")
    address = store.upload(data, "clicks/checked")
    for where in (address, str(data)):
        assert main(["inspect", where, "--json"]) == 0
    far, near = capfd.readouterr().out.splitlines()
    assert far == near
    assert main(["verify", address]) == 0
    shard = "train/part-00001.parquet"
    store.write(f"clicks/checked/{shard}", (data / shard).read_bytes()[:-1])
    assert main(["verify", address]) == 74
    shown = capfd.readouterr()
    assert f"{shard} has " in shown.out
    assert "s3://clicks/checked?" in shown.out
    manifest = Manifest.load(data)
    others = manifest.rows - manifest.splits["train"].shards[1].rows
    assert f"shards are damaged; {others:,} of {manifest.rows:,} rows are in the others; restore them" in shown.out
    assert SECRET not in shown.out + shown.err


def test_what_cannot_work_is_one_line(
    write_config: Callable[..., Path], tmp_path: Path, sharded: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(write_config("[budget]\nsteps = 3")), "--run", str(tmp_path / "run")]
    command += ["--data.path", sharded.as_uri(), "--data.cache_path", str(tmp_path / "cache")]
    for option, value, code, words in (
        ("--data.path", store.uri("clicks/none"), 2, "s3://clicks/none is not a data folder"),
        ("--data.cache_bytes", "9", 2, "data.cache_bytes = 9 is too little for the shards of two shuffle windows"),
        ("--data.cache_bytes", "0", 2, "data.cache_bytes = 0"),
        ("--data.cache_path", "/proc/nowhere", 74, "/proc/nowhere"),
    ):
        capfd.readouterr()
        assert main([*command, option, value]) == code
        (line,) = capfd.readouterr().err.splitlines()
        assert words in line
    assert not (tmp_path / "run").exists()


def test_a_manifest_is_fetched_once_a_command(
    write_config: Callable[..., Path], tmp_path: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    chunks = RemoteFolder.chunks

    def watched(folder: RemoteFolder, name: str) -> Iterator[pa.Buffer]:
        fetched.append(name)
        return chunks(folder, name)

    monkeypatch.setattr(RemoteFolder, "chunks", watched)
    run, data = str(tmp_path / "run"), ["--data.path", sharded.as_uri(), "--data.cache_path", str(tmp_path / "cache")]
    config = str(write_config("[eval]\nevery_steps = 5\nsplits = ['validation', 'test']"))
    for steps, evaluations_at in (("20", [5, 10, 15, 20]), ("30", [25, 30])):  # a run, and its continuation
        fetched.clear()
        assert main(["train", config, "--run", run, "--budget.steps", steps, *data]) == 0
        assert fetched.count("manifest.json") == 1
        done = [(step, split) for step, split, _ in evaluations(Path(run)) if step in evaluations_at]
        assert done == [(step, split) for step in evaluations_at for split in ("validation", "test")]
    for command in (
        ["evaluate", run],
        ["evaluate", run, "--data", sharded.as_uri()],
        ["predict", run, sharded.as_uri(), "--out", str(tmp_path / "scores.csv")],
        ["stall", config, "--steps", "2", "--warmup-steps", "1", "--budget.steps", "9", *data],
    ):
        fetched.clear()
        assert main(command) == 0
        assert fetched.count("manifest.json") == 1


def test_stall_begins_with_an_empty_cache_of_its_own(
    write_config: Callable[..., Path],
    tmp_path: Path,
    sharded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fetched: list[str] = []
    chunks = RemoteFolder.chunks

    def watched(folder: RemoteFolder, name: str) -> Iterator[pa.Buffer]:
        fetched.append(name)
        return chunks(folder, name)

    monkeypatch.setattr(RemoteFolder, "chunks", watched)
    config = write_config("[budget]\nsteps = 1000")
    command = ["stall", str(config), "--steps", "20", "--warmup-steps", "2", "--json", "--data.batch_rows", "32"]
    shards = len(Manifest.load(sharded).splits["train"].shards)
    capfd.readouterr()
    for expected in (2, 1):  # cold and warm; cold alone, as the cache has them now
        fetched.clear()
        assert main([*command, "--data.path", sharded.as_uri(), "--data.cache_path", str(tmp_path / "cache")]) == 0
        report = json.loads(capfd.readouterr().out)
        assert report["no_cold_run"] is None
        assert len([name for name in fetched if name.startswith("train/")]) == expected * shards
    [warm] = [run for run in report["runs"] if run["name"] == "warm"]
    assert {use["stage"]: use["seconds_per_step"] for use in warm["stages"]}["download"] == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["alphastream-shards"]


def test_a_stall_that_is_terminated_leaves_no_cold_cache(
    write_config: Callable[..., Path],
    tmp_path: Path,
    sharded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cold: list[Path] = []
    step = Stopwatch.on_step

    def terminate(self: Stopwatch, *arguments: Any) -> None:
        step(self, *arguments)
        if not cold:
            cold.extend((tmp_path / "cache").glob("stall-*/alphastream-shards/*.parquet"))
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Stopwatch, "on_step", terminate)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # whatever else it would do: not end the tests
    try:
        command = ["stall", str(write_config("[budget]\nsteps = 1000")), "--steps", "20", "--warmup-steps", "2"]
        command += ["--data.path", sharded.as_uri(), "--data.cache_path", str(tmp_path / "cache")]
        assert main(command) == EXIT_INTERRUPTED
    finally:
        assert signal.signal(signal.SIGTERM, before) is not signal.default_int_handler
    assert cold
    assert not list((tmp_path / "cache").iterdir())
