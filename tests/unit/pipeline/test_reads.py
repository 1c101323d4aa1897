"""Threads that may hang, waits that may end, and reads that are tried again: by fake clocks, without a pause."""

from __future__ import annotations

import doctest
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

import pipeline.reads
from pipeline.errors import FetchError, InterruptedWaitError, StorageError
from pipeline.reads import ReaderThreads, ReadRetries, awaited, is_transient
from pipeline.reads.retries import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from pipeline.shards import write_atomically
from tests.tiny_data import flip_in_row_group, reader


def test_the_example_does_what_it_says() -> None:
    names = {name: getattr(pipeline.reads, name) for name in pipeline.reads.__all__}
    assert doctest.testmod(pipeline.reads, extraglobs=names).failed == 0


def test_a_thread_in_a_read_that_hangs_is_left_behind_and_ends_with_it() -> None:
    hangs, others = threading.Event(), []
    pool = ReaderThreads(2, name="test")
    stuck = pool.submit(hangs.wait)
    assert pool.submit(others.append, 1).result() is None
    assert not pool.close(0.01)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(others.append, 2)
    (left,) = [thread for thread in threading.enumerate() if thread.name.startswith("alphastream-test")]
    assert left.daemon
    hangs.set()
    assert stuck.result() is True
    left.join()
    assert others == [1]


def test_errors_reach_who_asks_and_threads_go_on() -> None:
    pool = ReaderThreads(1, name="test")
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result()
    assert pool.submit(lambda: 7).result() == 7
    assert pool.close()


def test_a_wait_ends_when_it_is_interrupted_and_what_is_there_is_taken() -> None:
    future: Future[int] = Future()
    with pytest.raises(InterruptedWaitError):
        awaited(future, lambda: True)
    future.set_result(3)
    assert awaited(future, lambda: True) == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject"), True),
        (OSError("HTTP status 503"), True),
        (OSError("HTTP status 403: AWS Error ACCESS_DENIED"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (StorageError("it differs from what the manifest says"), False),
        (FetchError("the disk is full"), False),
        (ValueError("connection reset"), False),
    ],
)
def test_what_may_pass_by_itself(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected
    wrapped = FetchError("cannot be fetched")
    wrapped.__cause__ = error
    assert is_transient(wrapped) is (expected and isinstance(error, OSError))


class Clock:
    now = 0.0

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def failing(times: int) -> Callable[[], str]:
    errors: Iterator[OSError] = (OSError(errno.EIO, "Input/output error") for _ in range(times))

    def read() -> str:
        for error in errors:
            raise error
        return "rows"

    return read


def retries(clock: Clock, seconds: float, chance: float = 0.0) -> tuple[ReadRetries, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    found = ReadRetries(seconds, monotonic=lambda: clock.now, chance=lambda: chance)
    found.listen = lambda cause, text: told.append((cause, text))
    return found, told


def test_pauses_grow_twofold_to_the_longest_and_the_time_is_bounded() -> None:
    clock = Clock()
    found, told = retries(clock, 300.0)
    with pytest.raises(OSError, match="Input/output"):
        found.run("shard", failing(10_000), pause=clock.pause)
    assert clock.pauses[:5] == [FIRST_PAUSE_SECONDS / 2 * 2**k for k in range(5)]
    assert max(clock.pauses) == LONGEST_PAUSE_SECONDS / 2
    assert clock.now == 300.0
    assert len(told) == len(clock.pauses)
    assert told[0] == ("error", "shard: Input/output error; it is tried again for 300 s")


def test_readers_that_failed_together_come_back_apart() -> None:
    pauses = []
    for chance in (0.0, 0.5, 0.999):
        clock = Clock()
        assert retries(clock, 60.0, chance)[0].run("shard", failing(1), pause=clock.pause) == "rows"
        pauses += clock.pauses
    assert pauses == pytest.approx([FIRST_PAUSE_SECONDS * part for part in (0.5, 0.75, 1.0)], rel=1e-3)


def test_what_does_not_pass_is_raised_at_once() -> None:
    clock = Clock()
    found, told = retries(clock, 60.0)

    def read() -> None:
        raise StorageError("it is damaged")

    with pytest.raises(StorageError):
        found.run("shard", read, pause=clock.pause)
    with pytest.raises(OSError, match="Input"):
        found.run("shard", failing(1), pause=clock.pause, final=(OSError,))
    with pytest.raises(OSError, match="Input"):
        retries(clock, 0.0)[0].run("shard", failing(1), pause=clock.pause)
    assert clock.pauses == told == []


def test_damage_that_the_disk_does_not_have_is_gone_when_read_again(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a bit that fell over in memory: the page cache gives the same bytes until the file is dropped from it."""
    shard = tiny_data / "train" / "part-00001.parquet"
    good = shard.read_bytes()
    flip_in_row_group(shard, 2)
    monkeypatch.setattr("pipeline.shards.shard_files.drop_files", lambda paths: write_atomically(shard, good))
    r = reader(tiny_data)
    told: list[tuple[str, str]] = []
    r._groups._retries.listen = lambda cause, text: told.append((cause, text))
    assert r.read(0, 0, 77).rows == 77
    r.close()
    [(cause, text)] = told
    assert cause == "damage"
    assert "part-00001.parquet: row group 2: " in text
