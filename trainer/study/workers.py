"""Several runs at once, each in a process of its own that is stopped the way a run is: by SIGTERM, resumable."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from pipeline.stages import usable_cores
from trainer.config import Config
from trainer.job import train
from trainer.loop import Stop
from trainer.records import RecordsConfig
from trainer.study.definition import StudyRun
from trainer.study.progress import Message, RunConsole

SPAWN = multiprocessing.get_context("spawn")
POLL_SECONDS = 0.2


class RunError(Exception):
    """A run could not be made; the cause is the error as the run raised it."""

    def __init__(self, run: StudyRun) -> None:
        super().__init__(run.name)
        self.run = run


def runs_in_turn(
    runs: Sequence[StudyRun],
    out: Path,
    *,
    listen: Callable[[StudyRun, Message], None],
    stopping: Callable[[], bool],
) -> Iterator[tuple[StudyRun, Stop]]:
    """Makes the runs in this process, one after the other; each with how it ended. A signal ends the last of them.

    Raises: RunError.
    """
    for run in runs:
        if stopping():
            return
        try:
            stop = _make(run.config, out / run.path, lambda message, run=run: listen(run, message))
        except Exception as error:
            raise RunError(run) from error
        yield run, stop
        if stop.unfinished:
            return


def runs_at_once(
    runs: Sequence[StudyRun],
    out: Path,
    *,
    jobs: int,
    listen: Callable[[StudyRun, Message], None],
    stopping: Callable[[], bool],
) -> Iterator[tuple[StudyRun, Stop]]:
    """Makes up to `jobs` runs at a time, in processes; each with how it ended, in the order in which they do.

    Once `stopping`, the runs in progress are told to stop and no other is begun.
    Raises: RunError.
    """
    waiting = list(runs)[::-1]
    told = False
    with _workers(min(jobs, len(runs))) as workers:
        while waiting or any(worker.run for worker in workers):
            if stopping():
                waiting.clear()
                if not told:
                    told = True
                    for worker in workers:
                        worker.process.terminate()
            for worker in workers:
                if worker.run is None and waiting:
                    worker.begin(waiting.pop(), out)
            busy = {worker.connection: worker for worker in workers if worker.run is not None}
            for connection in wait(list(busy), timeout=POLL_SECONDS):
                worker = busy[connection]  # pyright: ignore[reportArgumentType]
                assert worker.run is not None
                answer = worker.answer(told=told)
                if isinstance(answer, Stop):
                    yield worker.run, answer
                    worker.run = None
                else:
                    listen(worker.run, answer)


@dataclass(kw_only=True)
class _Worker:
    """One process, and the run it is making."""

    process: SpawnProcess
    connection: Connection
    run: StudyRun | None = None

    def begin(self, run: StudyRun, out: Path) -> None:
        self.connection.send((run.config, out / run.path))
        self.run = run

    def answer(self, *, told: bool) -> Stop | Message:
        """What the process sent; a process that ended early because it was told to stop was interrupted."""
        assert self.run is not None
        try:
            answer = self.connection.recv()
        except EOFError:
            if told:
                return Stop.INTERRUPTED
            self.process.join()
            lost = ChildProcessError(
                f"{self.run.name}: its process ended with code {self.process.exitcode} (-9: killed, perhaps for "
                "memory); lower --jobs if so, and run the same command again to continue"
            )
            raise RunError(self.run) from lost
        if isinstance(answer, Exception):
            raise RunError(self.run) from answer
        return answer


@contextmanager
def _workers(count: int) -> Iterator[list[_Worker]]:
    threads = max(1, usable_cores() // count)
    # a terminal's Ctrl-C reaches every process of its group; until a worker has left that group it must not hear it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        workers = [_started(threads) for _ in range(count)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.run is not None:
                worker.process.terminate()
            worker.connection.close()
        for worker in workers:
            worker.process.join()


def _started(threads: int) -> _Worker:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_work, args=(theirs, threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, connection=ours)


def _work(connection: Connection, threads: int) -> None:
    """Makes one run after the other until the study's process is gone or wants no more."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_stop_with, args=(parent.sentinel,), daemon=True).start()

    def send(answer: object) -> None:
        with suppress(BrokenPipeError):  # nobody hears it any more; `_stop_with` sees to the run
            connection.send(answer)

    while True:
        try:
            config, path = connection.recv()
            send(_make(config, path, send))
        except (EOFError, KeyboardInterrupt):
            return
        except Exception as error:
            send(_sendable(error))


def _stop_with(sentinel: int) -> None:
    """Once the study's process is gone, however it went, a run in progress is saved and stopped."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _make(config: Config, path: Path, send: Callable[[Message], None]) -> Stop:
    config = replace(config, records=RecordsConfig(full_steps=0))  # what is compared needs every step's line
    return train(config, path, console=RunConsole(send, budget_seconds=config.budget.seconds))


def _sendable(error: Exception) -> Exception:
    """The error as it is, if it survives the way to another process, else its traceback."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        again = None
    expected = isinstance(error, (ValueError, OSError)) and str(again) == str(error)
    return error if expected else RuntimeError("".join(traceback.format_exception(error)))
