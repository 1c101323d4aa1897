"""Checkpoints beside training: of their moment, told of when they are there, one at a time, none lost or unseen."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.records.host_memory
from pipeline.errors import StorageError
from tests.limits import largest_file
from tests.resume import lasting, same_bits
from tests.tiny_data import write_tiny
from trainer.config import Config, config_from
from trainer.console import Console
from trainer.job import checkpointing, train, training_state
from trainer.job.observer import RunObserver
from trainer.job.run_directory import RunDirectory
from trainer.job.save_thread import SaveThread
from trainer.loop import Stop
from trainer.records import folder_bytes, load_latest, read_records, write_checkpoint


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_tiny(tmp_path / "data", {"train": [[80]], "validation": [[8]], "test": [[8]]})
    values: dict[str, Any] = {
        "data": {"path": str(data), "batch_rows": 8},
        "model": {"table_rows": 16, "embedding_dim": 2, "bottom": [2], "top": [2, 1]},
        "optimizer": {"average": "ema"},
        "budget": {"steps": 7},
        "checkpoint": {"every_steps": 2, "keep": 10},
        "metrics": {"port": -1},
    }
    return config_from(values, where="test")


def begin(config: Config, run: Path) -> Stop:
    return train(config, run, console=Console(quiet=True))


def events(run: Path) -> list[str]:
    """What happened, without the time it took."""
    return [record["event"] for record in read_records(run / "events.jsonl") if record["event"] != "pause"]


def saved_steps(run: Path) -> list[int]:
    """In the order in which they were told."""
    return [line["step"] for line in read_records(run / "events.jsonl") if line["event"] == "checkpoint"]


@pytest.fixture
def on_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has a function called after every step, with the steps done."""
    original = RunObserver.on_step

    def install(function: Callable[[int], None]) -> None:
        def on_step(self: RunObserver, record: Any, *rest: Any) -> None:
            original(self, record, *rest)
            function(record["step"] + 1)

        monkeypatch.setattr(RunObserver, "on_step", on_step)

    return install


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What the thread waits for before it writes; opened also when training waits for the thread."""
    opened, take = threading.Event(), SaveThread.take

    def write(*content: Any, **values: Any) -> Path:
        assert opened.wait(60), "training waits for the thread unseen"
        return write_checkpoint(*content, **values)

    def take_opening(self: SaveThread, *, wait: bool = False) -> Any:
        if wait and self._thread is not None:
            opened.set()
        return take(self, wait=wait)

    monkeypatch.setattr(checkpointing, "write_checkpoint", write)
    monkeypatch.setattr(SaveThread, "take", take_opening)
    return opened


def test_checkpoints_are_of_their_step_though_training_goes_on_while_they_are_written(
    config: Config,
    tmp_path: Path,
    gate: threading.Event,
    on_step: Callable[[Callable[[int], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told_at: list[tuple[int, int]] = []
    on_step(lambda step: told_at.append((step, len(saved_steps(tmp_path / "beside")))))
    assert begin(config, tmp_path / "beside") is Stop.BUDGET
    # two more steps were made before the first of the saves was written, and it was told of no earlier
    assert told_at[:4] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    monkeypatch.setattr(trainer.records.host_memory, "available_bytes", lambda: 0)
    assert begin(config, tmp_path / "at_once") is Stop.BUDGET
    for step in (2, 4, 6, 7):
        beside, at_once = (tmp_path / run / "checkpoints" / f"step-{step:08d}" for run in ("beside", "at_once"))
        for name in ("model", "average", "state"):
            assert (beside / f"{name}.safetensors").read_bytes() == (at_once / f"{name}.safetensors").read_bytes()
    assert saved_steps(tmp_path / "beside") == saved_steps(tmp_path / "at_once") == [2, 4, 6, 7]
    warnings = [line["message"] for line in read_records(tmp_path / "at_once" / "events.jsonl") if "message" in line]
    assert [message for message in warnings if "memory" in message] == warnings
    assert len(warnings) == 1, "said once"


def test_a_save_that_is_due_while_one_is_written_waits_and_is_made(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    log: list[str] = []
    due = threading.Event()
    take = SaveThread.take

    def write(run: Path, step: int, *content: Any, **values: Any) -> Path:
        log.append(f"write {step}")
        assert due.wait(60)
        path = write_checkpoint(run, step, *content, **values)
        log.append(f"wrote {step}")
        return path

    def wait_for(self: SaveThread, *, wait: bool = False) -> Any:
        if wait and self._thread is not None:
            log.append("wait")
            due.set()
        return take(self, wait=wait)

    monkeypatch.setattr(checkpointing, "write_checkpoint", write)
    monkeypatch.setattr(SaveThread, "take", wait_for)
    on_step(lambda step: log.append(f"step {step}"))
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    first = log.index("wrote 2")
    assert log.index("step 4") < log.index("wait") < first < log.index("write 4") < log.index("wrote 4")
    assert log.index("wrote 2") < log.index("step 5")
    assert saved_steps(tmp_path / "run") == [2, 4, 6, 7]


def test_the_end_of_the_budget_waits_for_a_save_and_makes_its_own(
    config: Config, tmp_path: Path, gate: threading.Event
) -> None:
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    assert saved_steps(tmp_path / "run")[-2:] == [6, 7]
    assert events(tmp_path / "run")[-1] == "stop"


def test_a_signal_while_a_save_is_written_waits_for_it_and_makes_its_own(
    config: Config, tmp_path: Path, gate: threading.Event, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    on_step(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    assert begin(config, run) is Stop.INTERRUPTED
    assert saved_steps(run) == [2, 3]
    on_step(lambda _: None)
    assert begin(config, run) is Stop.BUDGET
    assert begin(config, whole) is Stop.BUDGET
    assert lasting(run)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(run)[0], lasting(whole)[0])


def test_a_second_signal_stops_at_once_and_lets_go_of_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write(run: Path, step: int, files: Any, **values: Any) -> Path:
        begun.set()
        assert go_on.wait(60)
        return write_checkpoint(run, step, files, **values)

    def interrupt(step: int) -> None:
        if step == 3:
            assert begun.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpointing, "write_checkpoint", write)
    monkeypatch.setattr("trainer.job.save_thread.ABANDON_SECONDS", 0.0)
    on_step(interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin(config, tmp_path / "run")
    RunDirectory(tmp_path / "run", config.resolved()).close()
    (left_behind,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    go_on.set()
    left_behind.join()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == [], "nothing appears after its run has ended"


def test_an_error_of_training_lets_a_save_end_and_tells_of_both(
    config: Config, tmp_path: Path, gate: threading.Event, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("on fire")

    on_step(fail)
    with pytest.raises(RuntimeError, match="on fire"):
        begin(config, tmp_path / "run")
    assert events(tmp_path / "run") == ["start", "checkpoint", "failed"]
    found = load_latest(tmp_path / "run")
    assert found is not None
    assert found.step == 2


def test_a_crash_of_the_thread_ends_training_aloud(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> Path:
        raise RuntimeError("a fault of the writer")

    monkeypatch.setattr(checkpointing, "write_checkpoint", crash)
    with pytest.raises(RuntimeError, match="fault of the writer"):
        begin(config, tmp_path / "run")
    assert events(tmp_path / "run") == ["start", "failed"]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_a_full_disk_is_counted_and_the_next_save_made(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(run: Path, step: int, *content: Any, **values: Any) -> Path:
        if step != 2:
            return write_checkpoint(run, step, *content, **values)
        with largest_file(100):
            return write_checkpoint(run, step, *content, **values)

    monkeypatch.setattr(checkpointing, "write_checkpoint", write)
    monkeypatch.setattr(checkpointing, "RETRY_SECONDS", 0.0)
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    # in place of the one that failed, one is made as soon as that is known
    first, *others = saved_steps(tmp_path / "run")
    assert first in (3, 4)
    assert [step for step in others if step > 4] == [6, 7]
    told = [line["message"] for line in read_records(tmp_path / "run" / "events.jsonl") if "message" in line]
    warnings = [text for text in told if "no checkpoint" in text]  # records may meet the limit as well
    assert warnings, "one, or more where the failure is known before step 3"
    assert all("no checkpoint at step 2" in text and "training goes on" in text for text in warnings)
    assert f"alphastream_checkpoint_failures_total {len(warnings)}.0" in (tmp_path / "run" / "metrics.prom").read_text()


def test_weights_that_are_not_finite_are_found_in_the_copy(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, poisonings = trainer.records.host_memory.HostMemory.snapshot, []

    def poisoned(self: Any, *content: Any) -> Any:
        files = snapshot(self, *content)
        assert files is not None
        if content[1]["position"]["step"] == 4 and not poisonings:
            poisonings.append(4)
            files[0].tensors["table.weight"][-1, -1] = torch.nan
        return files

    monkeypatch.setattr(trainer.records.host_memory.HostMemory, "snapshot", poisoned)
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    assert saved_steps(tmp_path / "run")[:2] == [2, 2], "gone back to, and saved so"
    assert saved_steps(tmp_path / "run")[-3:] == [4, 6, 7]
    told = [line["message"] for line in read_records(tmp_path / "run" / "events.jsonl") if "message" in line]
    assert told[0] == "no checkpoint at step 4: weights are not finite, the one before stays"
    assert "weights were not finite; back to step 2" in told[1]


def test_records_are_on_disk_before_the_checkpoint_that_counts_them(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        fsync(descriptor)
        if name in ("steps.jsonl", "alpha.jsonl", "evals.jsonl", "events.jsonl"):
            log.append(name)

    def watched_rename(path: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            log.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    begin(config, tmp_path / "run")
    records = ["steps.jsonl", "alpha.jsonl", "evals.jsonl", "events.jsonl"]
    assert log == [line for step in (2, 4, 6, 7) for line in (*records, f"step-{step:08d}")]
    found = load_latest(tmp_path / "run")
    assert found is not None
    assert found.state["records"]["steps"] == (tmp_path / "run" / "steps.jsonl").stat().st_size


class Disk:
    """What `write_checkpoint` meets: an error at each call while there are `errors`; pauses of the last save pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[OSError] = []
        self.pauses: list[float] = []
        self.attempts: list[int] = []
        self.at_pause: Callable[[], None] = lambda: None
        self._now = 0.0
        for module in (checkpointing, training_state):
            monkeypatch.setattr(module, "write_checkpoint", self._write)
        monkeypatch.setattr(checkpointing, "now", lambda: self._now)
        monkeypatch.setattr(checkpointing, "pause", self._pause)

    def _write(self, run: Path, step: int, *content: Any, **values: Any) -> Path:
        self.attempts.append(step)
        if self.errors:
            raise self.errors.pop(0)
        return write_checkpoint(run, step, *content, **values)

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._now += seconds
        self.at_pause()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def with_checkpoint(config: Config, **changes: Any) -> Config:
    return replace(config, checkpoint=replace(config.checkpoint, **changes))


def test_the_last_checkpoint_is_tried_until_there_is_room(config: Config, tmp_path: Path, disk: Disk) -> None:
    run = tmp_path / "run"
    disk.errors = [full() for _ in range(4)]
    assert begin(with_checkpoint(config, every_steps=None), run) is Stop.BUDGET
    assert disk.attempts == [7] * 5
    assert disk.pauses == [1.0, 2.0, 4.0, 8.0]
    assert saved_steps(run) == [7]
    warnings = [line["message"] for line in read_records(run / "events.jsonl") if "message" in line]
    assert len(warnings) == 1, "said once"
    assert "trying again for 300 s, a second signal leaves without it" in warnings[0]
    assert "alphastream_checkpoint_failures_total 4.0" in (run / "metrics.prom").read_text()


def test_the_last_checkpoint_is_given_up_with_what_would_help(
    config: Config, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert begin(config, whole) is Stop.BUDGET
    disk.errors = [full() for _ in range(1000)]
    monkeypatch.setattr(checkpointing, "free_bytes", lambda _: 1000)
    with pytest.raises(StorageError, match=r"of step 7, could not be written \(No space left on device\); free .* on"):
        begin(with_checkpoint(config, every_steps=None), run)
    assert sum(disk.pauses) == 300.0
    assert max(disk.pauses) == 30.0
    assert events(run)[-1] == "failed"
    disk.errors.clear()
    assert begin(with_checkpoint(config, every_steps=None), run) is Stop.BUDGET
    assert lasting(run)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(run)[0], lasting(whole)[0])


def test_a_second_signal_ends_the_patience_for_the_last_checkpoint(
    config: Config, tmp_path: Path, disk: Disk, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    on_step(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    disk.errors = [full() for _ in range(1000)]
    disk.at_pause = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        begin(with_checkpoint(config, every_steps=None), tmp_path / "run")
    assert len(disk.pauses) == 1


def test_older_checkpoints_make_room_and_that_is_said(
    config: Config, tmp_path: Path, disk: Disk, on_step: Callable[[Callable[[int], None]], None]
) -> None:
    run = tmp_path / "run"

    def fill_up(step: int) -> None:
        if step == 6:
            disk.errors = [full()]

    on_step(fill_up)
    assert begin(config, run) is Stop.BUDGET
    assert disk.attempts == [2, 4, 6, 6, 7]
    assert saved_steps(run) == [2, 4, 6, 7]
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006", "step-00000007"]
    warnings = [line["message"] for line in read_records(run / "events.jsonl") if "message" in line]
    assert warnings == ["No space left on device: deleted step-00000002 to make room for a checkpoint"]
    assert "alphastream_checkpoint_failures_total 0.0" in (run / "metrics.prom").read_text()


def test_another_error_than_a_full_disk_deletes_nothing(config: Config, tmp_path: Path, disk: Disk) -> None:
    run = tmp_path / "run"
    assert begin(replace(config, budget=replace(config.budget, steps=4)), run) is Stop.BUDGET
    disk.errors = [OSError(errno.EIO, os.strerror(errno.EIO))]
    assert begin(config, run) is Stop.BUDGET
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[:2] == ["step-00000002", "step-00000004"]
    warnings = [line["message"] for line in read_records(run / "events.jsonl") if "message" in line]
    assert [message for message in warnings if "see to the disk" in message]


def test_older_ones_that_cannot_be_deleted_are_no_failed_save(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "step-00000002":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    run = tmp_path / "run"
    assert begin(with_checkpoint(config, keep=1), run) is Stop.BUDGET
    assert saved_steps(run) == [2, 4, 6, 7]
    assert "alphastream_checkpoint_failures_total 0.0" in (run / "metrics.prom").read_text()
    warnings = [line["message"] for line in read_records(run / "events.jsonl") if "message" in line]
    assert len(warnings) == 3, "of the saves at 4, 6 and 7"
    assert all("step-00000002: Operation not permitted" in warning for warning in warnings)


def test_a_disk_that_will_be_full_is_told_after_the_first_step(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_step: Callable[[Callable[[int], None]], None],
) -> None:
    monkeypatch.setattr("trainer.job.saving.disk_space.free_bytes", lambda _: 10)
    run, told_at = tmp_path / "run", []

    def look(step: int) -> None:
        told_at.append((step, [line["step"] for line in read_records(run / "events.jsonl") if "message" in line]))

    on_step(look)
    assert begin(config, run) is Stop.BUDGET
    assert told_at[0] == (1, [])
    assert told_at[1] == (2, [1])
    warnings = [line["message"] for line in read_records(run / "events.jsonl") if "message" in line]
    assert len(warnings) == 1
    assert "not one checkpoint fits on this disk" in warnings[0]


def test_the_size_that_is_forecast_is_the_size_on_disk(config: Config, tmp_path: Path) -> None:
    forecasts: list[int] = []

    def expect(self: Any, size_bytes: int) -> None:
        forecasts.append(size_bytes)

    config = replace(config, model=replace(config.model, table_rows=100_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ops.metrics.Metrics.expect_checkpoint", expect)
        assert begin(config, tmp_path / "run") is Stop.BUDGET
    size = folder_bytes(tmp_path / "run" / "checkpoints" / "step-00000007")
    assert forecasts == [pytest.approx(size, rel=0.02)]
    exposed = (tmp_path / "run" / "metrics.prom").read_text()
    shown = re.search(r"^alphastream_checkpoint_bytes (.*)", exposed, flags=re.MULTILINE)
    assert shown is not None
    assert float(shown[1]) == size
    assert "alphastream_checkpoint_seconds_count 4.0" in exposed
    assert re.search(r"^alphastream_disk_free_bytes [1-9]", exposed, flags=re.MULTILINE)
