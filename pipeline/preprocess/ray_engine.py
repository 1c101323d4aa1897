"""The same parts as tasks on a Ray cluster; every node must see the sources and the data folder under the same paths.

A part of a plain local file is one task. A stream cannot be entered in the middle, so a source that is compressed or
remote is one task, which encodes its parts in order. Ray runs a task again where its worker dies; what has a record is
done, so that costs the part that was in the making and no more.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, cause_of
from pipeline.preprocess.config import Allowance
from pipeline.preprocess.encoder import PartRecord, Read, Workplace, encode_part
from pipeline.preprocess.engine import run_parts
from pipeline.preprocess.job import REPORT_SECONDS, Done, Job, Progress
from pipeline.preprocess.parts import Part, parts_of
from pipeline.source import ByteRange, RangeFinder, new_memory, range_blocks

TRIES = 10
"""How often a task may lose its worker."""
CONNECT_SECONDS = 10
"""How long a cluster may take to answer."""
TASKS_A_CORE = 2
"""Tasks that wait for or run on each core of the cluster; more would only hold their plan in memory."""


def run_parts_on_ray(job: Job, place: Workplace, report: Callable[[Progress], None] | None) -> list[PartRecord]:
    """Encode every part that has no record yet; the records of all parts, in row order.

    Uses the cluster of the environment variable RAY_ADDRESS, else one of `job.workers` cores on this machine.
    Raises: InputError without Ray, for standard input, or where more lines were rejected than the job allows;
    whatever a task raised first.
    """
    ray = _import_ray()
    if job.plan.sources[0].is_standard_input:
        raise InputError("--engine ray cannot read standard input (-); name files that every node can read")
    own = not ray.is_initialized()
    if own:
        connect(ray, job.workers)
    try:
        return _RayRun(ray, job, place, report).run()
    finally:
        if own:
            ray.shutdown()


def connect(ray: Any, workers: int) -> None:
    """Initialise `ray`, which says nothing on the terminal, with the cluster of RAY_ADDRESS or a local one.

    Raises: InputError where no cluster answers.
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


def encode_range(job: Job, part: Part, span: ByteRange, out: Path) -> list[PartRecord]:
    """A task: one part of a plain local file."""
    place = Workplace(out)
    source = job.plan.sources[part.source]
    memory = new_memory()
    encoded = encode_part(
        part,
        range_blocks(source, span, memory),
        source=source,
        log_format=job.plan.log_format,
        compression=job.plan.compression,
        place=place,
        progress=lambda rows, rejected: None,
        stop_offset=span.stop,
        read=lambda: Read(span.stop - span.start, None),
    )
    return [encoded.commit()]


def encode_source(job: Job, out: Path) -> list[PartRecord]:
    """A task: all parts of the job's one source, a stream."""
    return run_parts(job, Workplace(out), None)


class _RayRun:
    """One run: what was submitted, what is done."""

    def __init__(self, ray: Any, job: Job, place: Workplace, report: Callable[[Progress], None] | None) -> None:
        self._ray = ray
        self._job = job
        self._place = place
        self._report = report
        self._running: set[Any] = set()
        self._done = Done()
        self._resumed = Done()
        self._counting: int | None = None
        options = ray.remote(num_cpus=1, max_retries=TRIES)
        self._encode_range, self._encode_source = options(encode_range), options(encode_source)

    def run(self) -> list[PartRecord]:
        room = max(1, int(self._ray.cluster_resources().get("CPU", 1))) * TASKS_A_CORE
        try:
            for submit in self._tasks():
                while len(self._running) >= room:
                    self._collect()
                self._running.add(submit())
            while self._running:
                self._collect()
        except BaseException:
            for task in self._running:
                self._ray.cancel(task, force=False)
            raise
        return self._done.finish(self._job, self._place)

    def _tasks(self) -> Iterator[Callable[[], Any]]:
        """What is to be submitted, in row order; parts that have a record are taken as done."""
        out = self._place.root.parent.absolute()
        plan = self._ray.put(self._job)
        for index, source in enumerate(self._job.plan.sources):
            if not source.is_plain_local():
                # A source alone cannot tell whether too many lines are rejected: that is for all sources to say.
                lenient = Allowance(count=None, share=1.0, text="100%")
                job = replace(self._job, only=index, workers=1, allowance=lenient)
                yield lambda job=job: self._encode_source.remote(job, out)
                continue
            segments = self._job.plan.segments(index, self._counted)
            self._counting = None
            with RangeFinder(source, self._job.plan.log_format) as finder:
                for part in parts_of(index, segments, self._job.plan.rows_per_shard):
                    record = self._place.find_record(part)
                    if record and record.stop_offset is not None:
                        finder.skip_to(record.stop_offset)
                        self._resumed.add(record)
                        self._done.add(record)
                        lines = record.lines
                    else:
                        span = finder.next_range(part.max_lines)
                        lines = span.lines
                        if lines:
                            yield lambda part=part, span=span: self._encode_range.remote(plan, part, span, out)
                    if lines < part.max_lines:
                        break

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
            self._done.check_hopeless(self._job, self._place)
        self._tell()

    def _counted(self, done: int) -> None:
        self._counting = done
        self._tell()

    def _tell(self) -> None:
        if self._report:
            progress = Progress(
                stage="encoding" if self._counting is None else "counting lines",
                rows=self._done.rows,
                rejected_rows=self._done.rejected_rows,
                bytes=self._done.bytes if self._counting is None else self._counting,
                total_bytes=self._job.total_bytes,
                seconds=time.monotonic() - self._job.began,
                resumed_rows=self._resumed.rows,
                resumed_bytes=self._resumed.bytes,
            )
            self._report(progress)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError(
            "--engine ray needs Ray, which is not installed; install the extra: alphastream[ray]"
        ) from None
