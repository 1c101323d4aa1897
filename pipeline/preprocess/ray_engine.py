"""The same parts as tasks on a Ray cluster; every node must see the sources and the data folder under the same paths.

A part of a plain local file is one task. A stream cannot be entered in the middle, so a source that is compressed or
remote is one task, which encodes its parts in order. Ray starts a task again if its worker dies; what has a record is
done, so that costs the part that was in the making and no more.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.errors import InputError, cause_of
from pipeline.preprocess.assignment import REPORT_SECONDS, Assignment, Done, Meter, Progress
from pipeline.preprocess.config import Allowance
from pipeline.preprocess.encoder import RangeLines, encode_part, range_parts
from pipeline.preprocess.engine import encode_parts
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.workplace import PartRecord, Workplace

TRIES = 10
"""How often a task may lose its worker."""
CONNECT_SECONDS = 10
"""How long a cluster may take to answer."""
TASKS_A_CORE = 2
"""Tasks that wait for or run on each core of the cluster; more would only hold memory."""


def encode_parts_on_ray(assignment: Assignment, report: Callable[[Progress], None] | None) -> list[PartRecord]:
    """Encode every part that has no record yet; the records of all parts, in row order.

    Uses the cluster of the environment variable RAY_ADDRESS, else one of `assignment.workers` cores on this machine.
    Raises: InputError without Ray, for standard input, or if more lines were rejected than the assignment allows;
    whatever a task raised first.
    """
    ray = _import_ray()
    if assignment.plan.sources[0].is_standard_input:
        raise InputError("--engine ray cannot read standard input (-); name files that every node can read")
    own = not ray.is_initialized()
    if own:
        connect(ray, assignment.workers)
    try:
        return _Tasks(ray, assignment, report).gather()
    finally:
        if own:
            ray.shutdown()


def connect(ray: Any, workers: int) -> None:
    """Initialise `ray`, which says nothing on the terminal, with the cluster of RAY_ADDRESS or a local one.

    Raises: InputError if no cluster answers.
    """
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        if found := re.search(r"^(?:ray://)?([^:/]+):(\d+)$", address or ""):
            # Ray itself would try for minutes, and say so.
            socket.create_connection((found[1], int(found[2])), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"RAY_ADDRESS {address}" if address else "a local Ray cluster"
        raise InputError(
            f"{where} cannot be used ({cause_of(error)}); correct RAY_ADDRESS, unset it, or use --engine threads"
        ) from error


def encode_range(plan: Plan, place: Workplace, lines: RangeLines) -> list[PartRecord]:
    """A task: one part of a plain local file."""
    return [encode_part(lines, plan, place).commit()]


def encode_source(assignment: Assignment) -> list[PartRecord]:
    """A task: all parts of the assignment's one source, a stream."""
    return encode_parts(assignment, None)


class _Tasks:
    """What was submitted, and what is done."""

    def __init__(self, ray: Any, assignment: Assignment, report: Callable[[Progress], None] | None) -> None:
        self._ray = ray
        self._assignment = replace(assignment, place=assignment.place.absolute())
        self._report = report
        self._running: set[Any] = set()
        self._done = Done(assignment)
        self._meter = Meter()
        options = ray.remote(num_cpus=1, max_retries=TRIES)
        self._encode_range, self._encode_source = options(encode_range), options(encode_source)

    def gather(self) -> list[PartRecord]:
        """Submit all tasks, a few ahead of those that run, and gather their records."""
        room = max(1, int(self._ray.cluster_resources().get("CPU", 1))) * TASKS_A_CORE
        try:
            for submit in self._submissions():
                while len(self._running) >= room:
                    self._collect()
                self._running.add(submit())
            while self._running:
                self._collect()
        except BaseException:
            for task in self._running:
                self._ray.cancel(task, force=False)
            raise
        return self._done.finish()

    def _submissions(self) -> Iterator[Callable[[], Any]]:
        """Calls that submit a task each, in row order; parts that have a record are taken as done."""
        plan, place = self._assignment.plan, self._assignment.place
        shared = self._ray.put(plan)
        for index, source in enumerate(plan.sources):
            if not source.is_plain_local():
                # A source alone cannot tell whether too many lines are rejected: that is for all sources to say.
                lenient = Allowance(count=None, share=1.0, text="100%")
                alone = replace(self._assignment, only=index, workers=1, allowance=lenient)
                yield partial(self._encode_source.remote, alone)
                continue
            segments = plan.segments(index, self._counted)
            self._meter.counting = None
            for found in range_parts(plan, place, index, segments):
                if isinstance(found, PartRecord):
                    self._done.add(found)
                    self._meter.resume(found)
                else:
                    yield partial(self._encode_range.remote, shared, place, found)

    def _collect(self) -> None:
        """Wait a moment for tasks to end, and take what they give."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=REPORT_SECONDS)
        for task in ended:
            self._running.remove(task)
            try:
                records = self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            for record in records:
                self._done.add(record)
                self._meter.add(record)
            self._done.check_hopeless()
        self._tell()

    def _counted(self, done_bytes: int) -> None:
        self._meter.counting = done_bytes
        self._tell()

    def _tell(self) -> None:
        if self._report:
            self._report(self._meter.progress(self._assignment))


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError(
            "--engine ray needs Ray, which is not installed; install the extra: alphastream[ray]"
        ) from None
