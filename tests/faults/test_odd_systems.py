"""What a system does on a bad day: read-only or without room for one more file, without fsync, its clock set back."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards import why_not_synced
from tests.faults.runs import write_data, write_settings
from tests.faults.small_disk import fill, remount, small_file_system
from tests.faults.small_run import same_end, small_run
from tests.logs import folder_bytes, write_log
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.config import Config, load_config
from trainer.console import Console
from trainer.job import checkpointing, train
from trainer.job.observer import Outlets
from trainer.loop import Stop
from trainer.records import RunHistory, read_records, verify_checkpoints


class Heard(Console):
    """A console that keeps its warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def config(settings: Path) -> Config:
    config = load_config(settings)
    return replace(config, checkpoint=replace(config.checkpoint, keep=3, final_retry_seconds=0.0))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(config, run, console=Console(quiet=True)) is Stop.BUDGET
    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", mebibytes=8) as disk:
        yield disk


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err.strip().splitlines()
    assert not [line for line in said if "Traceback" in line]
    return said[-1]


def warnings(run: Path) -> list[str]:
    return [line["message"] for line in read_records(run / "events.jsonl") if line["event"] == "warning"]


@pytest.mark.parametrize("files", [2, 4, 9, 17])
def test_a_run_without_room_for_another_file_says_so_and_goes_on_with_it(
    files: int, config: Config, whole: Path, tmp_path: Path
) -> None:
    """From its directory and lock to the last file of a checkpoint."""
    with small_file_system(tmp_path / "small", mebibytes=4, files=files) as disk:
        with pytest.raises(OSError, match="No space left on device"):
            train(config, disk / "run", console=Console(quiet=True))
        left = [name for name in folder_bytes(disk) if name.endswith((".tmp", ".partial")) or "/.partial" in name]
        assert left == []
        remount(disk, "nr_inodes=0")
        assert train(config, disk / "run", console=Console(quiet=True)) is Stop.BUDGET
        assert same_end(disk / "run", whole)
        assert all(health.damage is None for health in verify_checkpoints(disk / "run"))


@pytest.mark.parametrize("files", [2, 5, 11])
def test_preprocess_without_room_for_another_file_says_so_and_continues(
    files: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "day_0.tsv", 1200)
    command = ["preprocess", str(log), "--rows-per-shard", "300", "--workers", "1", "--out"]
    assert main([*command, str(tmp_path / "data")]) == 0
    with small_file_system(tmp_path / "small", mebibytes=8, files=files) as disk:
        capsys.readouterr()
        assert main([*command, str(disk / "data")]) == 74
        assert "No space left on device" in last_line(capsys)
        assert not (disk / "data" / "manifest.json").exists()
        remount(disk, "nr_inodes=0")
        assert main([*command, str(disk / "data")]) == 0
        shards = {name: held for name, held in folder_bytes(disk / "data").items() if name.endswith(".parquet")}
        assert shards == {
            name: held for name, held in folder_bytes(tmp_path / "data").items() if name.endswith(".parquet")
        }


def test_a_read_only_run_can_be_read_and_says_what_it_cannot_do(
    settings: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = disk / "run"
    assert main(["train", str(settings), "--run", str(run)]) == 0
    before = folder_bytes(disk)
    remount(disk, "ro")
    try:
        for command in (["evaluate", str(run), "--rows", "8"], ["verify", str(run)]):
            assert main(command) == 0, capsys.readouterr().err
        for command in (["train", str(settings), "--run", str(run), "--budget.steps", "9"], ["report", str(run)]):
            capsys.readouterr()
            assert main(command) == 74
            said = last_line(capsys)
            assert "Read-only file system" in said
            assert str(run) in said
        assert main(["train", str(settings), "--run", str(disk / "new")]) == 74
        assert "Read-only file system" in last_line(capsys)
    finally:
        remount(disk, "rw")
    assert folder_bytes(disk) == before


def test_a_disk_that_becomes_read_only_costs_a_run_time_alone(
    config: Config,
    whole: Path,
    disk: Path,
    on_step: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files are open for writing, so that no file system would be made read-only: writing fails in other words."""
    write, run = os.write, disk / "run"
    refusing = False

    def refuse(file: int, data: bytes) -> int:
        if refusing and Path(f"/proc/self/fd/{file}").readlink().suffix == ".jsonl":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(file, data)

    def set_refusing(value: bool) -> None:
        nonlocal refusing
        refusing = value

    def no_checkpoint(*_: Any, **__: Any) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(run))

    with monkeypatch.context() as fault:
        fault.setattr(os, "write", refuse)
        on_step(3, lambda: (set_refusing(True), fault.setattr(checkpointing, "write_checkpoint", no_checkpoint)))
        on_step(5, lambda: set_refusing(False))
        assert train(config, run, console=Console(quiet=True)) is Stop.BUDGET
    assert any("Read-only file system" in text and "training goes on" in text for text in warnings(run))
    assert same_end(run, whole)


def without_fsync(monkeypatch: pytest.MonkeyPatch, number: int, *, of_files: bool) -> None:
    """The system refuses it with this error: of directories alone, or of files too."""
    fsync = os.fsync

    def unknown(file: int) -> None:
        if of_files or stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", unknown)


@pytest.mark.parametrize(
    ("number", "of_files"), [(errno.EINVAL, False), (errno.ENOTSUP, True), (errno.ENOSYS, False), (errno.EINVAL, True)]
)
def test_a_file_system_without_fsync_is_said_once_and_works(  # noqa: PLR0917  (fixtures)
    number: int, of_files: bool, config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_fsync(monkeypatch, number, of_files=of_files)
    assert why_not_synced(tmp_path) == os.strerror(number)
    assert train(config, tmp_path / "run", console=Console(quiet=True)) is Stop.BUDGET
    assert same_end(tmp_path / "run", whole)
    said = [text for text in warnings(tmp_path / "run") if "cannot put files on the disk when asked" in text]
    assert len(said) == len(warnings(tmp_path / "run")) == 1
    log = write_log(tmp_path / "day_0.tsv", 300)
    assert main(["preprocess", str(log), "--out", str(tmp_path / "made"), "--workers", "1"]) == 0


def test_a_report_is_written_without_fsync(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "run")
    without_fsync(monkeypatch, errno.ENOTSUP, of_files=True)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_an_fsync_that_fails_is_an_error(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        train(config, tmp_path / "run", console=Console(quiet=True))


def test_too_many_open_files_are_waited_for(
    tmp_path: Path, on_step: Callable[[int, Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another part of the process, or of the whole machine: shards are opened for every read."""
    path = write_settings(tmp_path / "config.toml", write_data(tmp_path / "data"))
    assert train(load_config(path), tmp_path / "whole", console=Console(quiet=True)) is Stop.BUDGET
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    retry, failed = Outlets.retry, list[str]()

    def take_all() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

    def give_back(self: Outlets, cause: str, text: str) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        failed.append(text)
        retry(self, cause, text)

    monkeypatch.setattr(Outlets, "retry", give_back)
    on_step(10, take_all)
    try:
        assert train(load_config(path), tmp_path / "run", console=Console(quiet=True)) is Stop.BUDGET
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert failed
    assert all("Too many open files" in text for text in failed)
    (tensors, steps, _), (expected, all_steps, _) = lasting(tmp_path / "run"), lasting(tmp_path / "whole")
    assert steps == all_steps
    assert same_bits(tensors, expected)


def test_a_clock_that_is_set_back_changes_no_duration(
    config: Config, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()

    def backwards() -> float:
        nonlocal now
        now -= 3600.0
        return now

    monkeypatch.setattr(time, "time", backwards)
    assert train(config, tmp_path / "run", console=Console(quiet=True)) is Stop.BUDGET
    monkeypatch.undo()
    assert same_end(tmp_path / "run", whole)
    log = RunHistory.load(tmp_path / "run")
    assert (log.steps["seconds"] >= 0).all()
    assert all(seconds >= 0 for seconds in log.phase_totals.values())
    assert all((table["seconds"] >= 0).all() for table in log.evaluations.values())
    times = [line["time"] for line in read_records(tmp_path / "run" / "events.jsonl")]
    assert times == sorted(times, reverse=True)
    assert main(["report", str(tmp_path / "run")]) == 0


def test_the_last_metrics_are_whole_or_not_there_and_written_once_there_is_room(
    config: Config, disk: Path, tmp_path: Path, on_step: Callable[[int, Callable[[], object]], None]
) -> None:
    """The disk is full from before the end on; checkpoints lie on another."""
    run, console = disk / "run", Heard()
    (tmp_path / "checkpoints").mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "checkpoints")
    on_step(6, lambda: fill(disk, leave_bytes=4096))
    assert train(config, run, console=console) is Stop.BUDGET
    (said,) = [text for text in console.warnings if "metrics.prom" in text]
    assert "No space left on device" in said
    assert not (run / "metrics.prom").exists()
    assert not list(run.glob("*.tmp"))
    (disk / "ballast").unlink()
    assert train(config, run, console=console) is Stop.BUDGET
    assert "\nalphastream_exit_code 0.0\n" in (run / "metrics.prom").read_text()


def test_metrics_of_an_earlier_process_do_not_outlive_what_they_tell(
    config: Config, disk: Path, tmp_path: Path, on_step: Callable[[int, Callable[[], object]], None]
) -> None:
    run = disk / "run"
    (tmp_path / "checkpoints").mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "checkpoints")
    assert train(config, run, console=Console(quiet=True)) is Stop.BUDGET
    size = (run / "metrics.prom").stat().st_size
    longer = replace(config, budget=replace(config.budget, steps=8))
    for leave_bytes, there in ((size // 2, True), (0, False)):
        (run / "metrics.prom").write_text("old" * (size // 3))
        on_step(8, lambda leave_bytes=leave_bytes: fill(disk, leave_bytes=leave_bytes))
        if not there:  # nothing of it can be given for the new one
            (run / "metrics.prom").write_text("old")
        assert train(longer, run, console=Console(quiet=True)) is Stop.BUDGET
        assert (run / "metrics.prom").exists() is there
        if there:
            assert "\nalphastream_exit_code 0.0\n" in (run / "metrics.prom").read_text()
        (disk / "ballast").unlink()
        longer = replace(longer, budget=replace(longer.budget, steps=10))
        on_step(10, lambda: fill(disk, leave_bytes=0))
