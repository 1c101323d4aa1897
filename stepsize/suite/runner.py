"""Makes the runs that are wanted, several at once, each in a process of its own that lives as long as the study."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

import torch

from stepsize.suite.methods import METHODS
from stepsize.suite.plan import left, mean_of, wanted
from stepsize.suite.problems.problem import Task, draw
from stepsize.suite.problems.rows import SuiteError
from stepsize.suite.store import FinishedRun, PlannedRun, RunStore
from stepsize.suite.training import run

LINE_SECONDS = 30.0
"""How often the progress is said where no terminal shows it."""


def make_run(task: Task, planned: PlannedRun, data: Path | None) -> dict[str, Any]:
    """Draw the problem, train it, and tell what came of it and how long it took."""
    began = time.perf_counter()
    record = run(draw(task, planned.seed, data), METHODS[planned.method], planned.rate)
    return {**record, "wall_seconds": time.perf_counter() - began}


def _work(orders: Connection, data: Path | None) -> None:
    """Make one run after another until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the study decides
    warnings.filterwarnings("ignore", message="TF32 acceleration")  # of GPUs that are not here
    torch.set_num_threads(1)
    while True:
        try:
            task, planned = orders.recv()
        except EOFError:  # the study is gone
            return
        try:
            answer: Any = make_run(task, planned, data)
        except Exception as error:  # crosses to the study, which raises
            answer = SuiteError(f"{planned.task}, {planned.name}: {type(error).__name__}: {error}")
        try:
            orders.send(answer)
        except BrokenPipeError:
            return


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    orders: Connection
    doing: PlannedRun | None = None


@dataclass(kw_only=True)
class RunsOfStudy:
    """The runs of a study: what is done, what is next, how long it will take."""

    tasks: Sequence[Task]
    methods: Sequence[str]
    seeds: int
    jobs: int
    store: RunStore
    data: Path | None
    finished_task: Callable[[Task], None] = lambda _: None
    """Called when the last run of a task is there."""
    out: TextIO = field(default_factory=lambda: sys.stderr)
    _workers: list[_Worker] = field(default_factory=list)

    def make(self) -> None:
        """Make every run that is missing.

        Raises: SuiteError where a run cannot be made. Whatever is raised, no process is left, and runs that are in
        the store stay there.
        """
        self._open = {task.name: task for task in self.tasks if self._wanted(task)}
        self._progress = _StudyProgress(self)
        try:
            self._fill()
            while any(worker.doing for worker in self._workers):
                for orders in wait([worker.orders for worker in self._workers if worker.doing]):
                    [worker] = [worker for worker in self._workers if worker.orders is orders]
                    self._take(worker)
                self._fill()
        finally:
            self._progress.end()
            for worker in self._workers:
                worker.orders.close()
                worker.process.terminate()
            for worker in self._workers:
                worker.process.join()
            self._workers.clear()

    def lookup(self, planned: PlannedRun) -> FinishedRun | None:
        """The run, if it is there."""
        return self.store.get(planned, self._by_name[planned.task])

    @property
    def _by_name(self) -> dict[str, Task]:
        return {task.name: task for task in self.tasks}

    def _wanted(self, task: Task) -> list[PlannedRun]:
        return wanted(task, self.methods, self.seeds, lambda planned: self.store.get(planned, task))

    def _fill(self) -> None:
        """Give every idle process a run, those of earlier tasks first; begin processes while there is more to do."""
        doing = {worker.doing for worker in self._workers}
        waiting = [planned for task in self._open.values() for planned in self._wanted(task) if planned not in doing]
        for planned in dict.fromkeys(waiting):
            worker = self._idle()
            if worker is None:
                return
            worker.orders.send((self._by_name[planned.task], planned))
            worker.doing = planned

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.doing is None:
                return worker
        if len(self._workers) == self.jobs:
            return None
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, self.data), daemon=True)
        with _one_thread():
            process.start()
        there.close()  # so that its end is seen
        self._workers.append(_Worker(process=process, orders=here))
        return self._workers[-1]

    def _take(self, worker: _Worker) -> None:
        planned = worker.doing
        assert planned is not None
        try:
            answer = worker.orders.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            raise SuiteError(
                f"{planned.task}, {planned.name}: its process ended with {worker.process.exitcode}; perhaps memory is "
                "short: give fewer --jobs. The same command continues"
            ) from None
        worker.doing = None
        if isinstance(answer, SuiteError):
            raise answer
        task = self._by_name[planned.task]
        self.store.put(planned, task, answer)
        self._progress.made(planned, answer["wall_seconds"])
        if not self._wanted(task):
            del self._open[task.name]
            self.finished_task(task)


@contextlib.contextmanager
def _one_thread():
    """For a process that is begun meanwhile: one thread a run, whatever reads this before torch is asked."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _StudyProgress:
    """One line: runs made, how many are left, and how long they will take."""

    def __init__(self, study: RunsOfStudy) -> None:
        self._study = study
        self._seconds: dict[str, list[float]] = {}
        self._said = time.monotonic()
        self._terminal = study.out.isatty()

    def made(self, planned: PlannedRun, seconds: float) -> None:
        """Count a run."""
        self._seconds.setdefault(planned.task, []).append(seconds)
        if self._terminal:
            self._study.out.write(f"\r\x1b[K{self.line(planned)}")
            self._study.out.flush()
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._study.out.write(self.line(planned) + "\n")
            self._study.out.flush()

    def line(self, planned: PlannedRun) -> str:
        """What is said after a run."""
        study = self._study
        left_of = {task.name: left(task, study.methods, study.seeds, study.lookup) for task in study._open.values()}
        every = [seconds for several in self._seconds.values() for seconds in several]
        rest = sum(runs * mean_of(self._seconds.get(name, every)) for name, runs in left_of.items())
        minutes = math.ceil(rest / study.jobs / 60)
        return (
            f"{len(every)} runs made, about {sum(left_of.values())} left, {minutes} min; {planned.task}, {planned.name}"
        )

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._seconds:
            self._study.out.write("\n")
            self._study.out.flush()
