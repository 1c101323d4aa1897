"""One save at a time in a thread: what came of it crosses over once, and nobody hangs on it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import trainer.job.save_thread
from tests.limits import largest_file
from trainer.job.save_thread import SaveAbandonedError, SaveThread
from trainer.ranks import RanksLostError
from trainer.records import HostMemory, load_latest, write_checkpoint


def test_an_outcome_is_taken_once(tmp_path: Path) -> None:
    with SaveThread() as saves:
        assert saves.take() is None
        assert saves.take(wait=True) is None
        saves.begin(3, lambda: tmp_path)
        outcome = saves.take(wait=True)
        assert outcome is not None
        assert (outcome.step, outcome.path, outcome.error) == (3, tmp_path, None)
        assert saves.take(wait=True) is None


def test_nobody_waits_for_a_save_unasked(tmp_path: Path) -> None:
    go_on = threading.Event()

    def write() -> Path:
        assert go_on.wait(60)
        return tmp_path

    with SaveThread() as saves:
        saves.begin(3, write)
        assert saves.take() is None
        with pytest.raises(AssertionError, match="under way"):
            saves.begin(4, lambda: tmp_path)
        go_on.set()
        outcome = saves.take(wait=True)
        assert outcome is not None
        assert outcome.path == tmp_path


@pytest.mark.parametrize("error", [OSError("full"), RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_ends_a_save_crosses_over(error: BaseException) -> None:
    def write() -> Path:
        raise error

    with SaveThread() as saves:
        saves.begin(3, write)
        outcome = saves.take(wait=True)
        assert outcome is not None
        assert outcome.error is error
        assert outcome.path is None


@pytest.mark.parametrize("error", [None, RuntimeError("training failed")])
def test_the_end_waits_for_a_save(tmp_path: Path, error: Exception | None) -> None:
    saves, go_on = SaveThread(), threading.Event()

    def write() -> Path:
        assert go_on.wait(60)
        return tmp_path

    saves.begin(3, write)
    threading.Timer(0.0, go_on.set).start()
    saves.__exit__(type(error) if error else None, error, None)
    outcome = saves.take()
    assert outcome is not None
    assert outcome.path == tmp_path


def test_a_stop_at_once_abandons_a_save_at_its_next_file(tmp_path: Path) -> None:
    saves, reached = SaveThread(), threading.Event()
    files = HostMemory().snapshot({"model": {"weight": torch.ones(10)}}, {})
    assert files is not None

    def second_after_the_signal() -> object:
        yield files[0]
        reached.set()
        while not saves._abandoned:
            pass
        yield files[1]

    def write() -> Path:
        return write_checkpoint(tmp_path, 3, saves.until_abandoned(second_after_the_signal()), keep=1)  # pyright: ignore

    saves.begin(3, write)
    assert reached.wait(60)
    saves.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    outcome = saves.take()
    assert outcome is not None
    assert isinstance(outcome.error, SaveAbandonedError)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RanksLostError("rank 1 does not answer")])
def test_an_end_at_once_does_not_hang_on_what_the_save_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    monkeypatch.setattr(trainer.job.save_thread, "ABANDON_SECONDS", 0.0)
    saves, go_on = SaveThread(), threading.Event()

    def write() -> Path:
        assert go_on.wait(60)
        return tmp_path

    saves.begin(3, write)
    saves.__exit__(type(end), end, None)
    (left_behind,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert left_behind.daemon, "or the interpreter would wait for it"
    go_on.set()
    left_behind.join()


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
def test_a_full_disk_is_an_outcome_and_leaves_the_older_one(tmp_path: Path, size: int) -> None:
    def save(step: int) -> BaseException | None:
        files = memory.snapshot({"model": {"weight": torch.full((100_000,), float(step))}}, {"step": step})
        assert files is not None
        saves.begin(step, lambda: write_checkpoint(tmp_path, step, saves.until_abandoned(files), keep=1))
        outcome = saves.take(wait=True)
        assert outcome is not None
        return outcome.error

    memory = HostMemory()
    with SaveThread() as saves:
        assert save(1) is None
        with largest_file(size):
            assert isinstance(save(2), OSError)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
        assert save(3) is None
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.damaged) == (3, ())
    assert torch.equal(found.tensors["model"]["weight"], torch.full((100_000,), 3.0))
