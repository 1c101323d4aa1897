"""The threads that carry out a plan: producers cut sources into parts, workers encode them, committers wait for the
disk, the caller watches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import InputError
from pipeline.preprocess.encoder import EncodedPart, PartRecord, Read, Workplace, encode_part
from pipeline.preprocess.job import REPORT_SECONDS, Done, Job, Progress
from pipeline.preprocess.parts import Segment, parts_of
from pipeline.preprocess.tasks import Budget, Task
from pipeline.source import Block, ByteRange, LineReader, Pieces, RangeFinder, Source, new_memory, range_blocks

READ_AHEAD_BYTES = 192 << 20
"""Decompressed bytes that may wait for workers: enough that several shards of a stream are encoded at once."""


def run_parts(job: Job, place: Workplace, report: Callable[[Progress], None] | None) -> list[PartRecord]:
    """Encode every part that has no record yet; the records of all parts, in row order.

    Raises: whatever a thread raised first; InputError where more lines were rejected than the job allows.
    """
    run = _Run(job=job, place=place, working=job.workers)
    streams = sum(not source.is_plain_local() for source in run.sources)
    producers = max(1, min(streams, job.workers // 2))
    targets = [
        *[lambda: run.produce(READ_AHEAD_BYTES // producers)] * producers,
        *[run.work] * job.workers,
        *[run.commit] * job.workers,
    ]
    threads = [threading.Thread(target=run.guarded, args=(target,), name="preprocess") for target in targets]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            threads[-1].join(REPORT_SECONDS) if threads[-1].is_alive() else time.sleep(REPORT_SECONDS / 10)
            if report:
                report(run.progress())
    finally:
        run.stop()
        for thread in threads:
            thread.join()
        for part in run.encoded:
            part.abandon()
    if run.error:
        raise run.error
    if report:
        report(run.progress())
    return run.done.finish(job, place)


class _StoppedError(Exception):
    """Ends a thread because another one failed or the caller gave up."""


@dataclass
class _Run:
    """State shared by the threads of one run, guarded by one condition."""

    job: Job
    place: Workplace
    working: int
    """Workers that have not ended."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    tasks: deque[Task] = field(default_factory=deque)
    encoded: deque[EncodedPart] = field(default_factory=deque)
    done: Done = field(default_factory=Done)
    started: int = 0
    """Sources that a producer has begun."""
    producing: int = 0
    stopped: bool = False
    error: BaseException | None = None
    counting: int | None = None
    rows: int = 0
    rejected: int = 0
    bytes: int = 0
    resumed_rows: int = 0
    resumed_bytes: int = 0

    def progress(self) -> Progress:
        with self.changed:
            return Progress(
                stage="encoding" if self.counting is None else "counting lines",
                rows=self.rows,
                rejected_rows=self.rejected,
                bytes=self.bytes if self.counting is None else self.counting,
                total_bytes=self.job.total_bytes,
                seconds=time.monotonic() - self.job.began,
                resumed_rows=self.resumed_rows,
                resumed_bytes=self.resumed_bytes,
            )

    @property
    def sources(self) -> list[Source]:
        return [self.job.plan.sources[index] for index in self.job.indices]

    def guarded(self, target: Callable[[], None]) -> None:
        """Run a thread's work; its error stops the others and reaches the caller."""
        try:
            target()
        except _StoppedError:
            pass
        except BaseException as error:
            with self.changed:
                self.error = self.error or error
            self.stop()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait, holding `changed`, until the condition holds. Raises: _StoppedError where the run ends first."""
        self.changed.wait_for(lambda: self.stopped or condition())
        if self.stopped:
            raise _StoppedError

    # Producers

    def produce(self, read_ahead_bytes: int) -> None:
        with self.changed:
            self.producing += 1
        try:
            while (index := self._take_source()) is not None:
                source = self.job.plan.sources[index]
                segments = self.job.plan.segments(index, self._counting)
                with self.changed:
                    self.counting = None
                if source.is_plain_local():
                    self._produce_ranges(index, segments)
                else:
                    self._produce_blocks(index, segments, Budget(read_ahead_bytes))
        finally:
            with self.changed:
                self.producing -= 1
                self.changed.notify_all()

    def _take_source(self) -> int | None:
        with self.changed:
            if self.stopped:
                raise _StoppedError
            if self.started == len(self.job.indices):
                return None
            self.started += 1
            return self.job.indices[self.started - 1]

    def _counting(self, done: int) -> None:
        with self.changed:
            if self.stopped:
                raise _StoppedError
            self.counting = done

    def _produce_ranges(self, index: int, segments: tuple[Segment, ...]) -> None:
        with RangeFinder(self.job.plan.sources[index], self.job.plan.log_format) as finder:
            for part in parts_of(index, segments, self.job.plan.rows_per_shard):
                record = self.place.find_record(part)
                if record and record.stop_offset is not None:
                    finder.skip_to(record.stop_offset)
                    self._resumed(record)
                    lines = record.lines
                else:
                    found = finder.next_range(part.max_lines)
                    lines = found.lines
                    if lines:
                        self._put(Task(part=part, range=found))
                if lines < part.max_lines:
                    return

    def _produce_blocks(self, index: int, segments: tuple[Segment, ...], budget: Budget) -> None:
        source = self.job.plan.sources[index]
        parts = parts_of(index, segments, self.job.plan.rows_per_shard)
        with LineReader(source, self.job.plan.log_format, memory=budget.take) as reader:
            pieces = Pieces(reader, checked=source.is_standard_input)
            while not pieces.ended:
                part = next(parts)
                record = self.place.find_record(part)
                task = None if record else self._put(Task(part=part, range=None, budget=budget))
                for block, stored_bytes in pieces.take(part.max_lines):
                    if task:
                        self._put_block(task, block, stored_bytes)
                    else:
                        budget.free.append(block.buffer)
                if task:
                    self._close(task, pieces.checksum)
                if record:
                    if record.checksum != pieces.checksum:
                        raise InputError(
                            f"standard input is not what {self.place.root.parent} was begun from; give another --out"
                        )
                    self._resumed(record)

    def _put(self, task: Task) -> Task:
        with self.changed:
            self.wait_for(lambda: len(self.tasks) < self.job.workers)
            self.tasks.append(task)
            self.changed.notify_all()
        return task

    def _put_block(self, task: Task, block: Block, stored_bytes: int) -> None:
        budget = task.budget
        assert budget
        size = block.stop - block.start
        with self.changed:
            self.wait_for(lambda: budget.used == 0 or budget.used + size <= budget.limit)
            budget.used += size
            task.stored_bytes += stored_bytes
            task.queue.append(block)
            self.bytes += stored_bytes
            self.changed.notify_all()

    def _close(self, task: Task, checksum: int | None) -> None:
        with self.changed:
            task.checksum = checksum
            task.closed = True
            self.changed.notify_all()

    def _resumed(self, record: PartRecord) -> None:
        with self.changed:
            self.done.add(record)
            self.rows += record.rows
            self.rejected += record.rejected_rows
            self.bytes += record.bytes
            self.resumed_rows += record.rows
            self.resumed_bytes += record.bytes

    # Workers

    def work(self) -> None:
        memory = new_memory()
        try:
            while (task := self._take_task()) is not None:
                self._hand_over(self._encode(task, memory))
        finally:
            with self.changed:
                self.working -= 1
                self.changed.notify_all()

    def _encode(self, task: Task, memory: np.ndarray) -> EncodedPart:
        source = self.job.plan.sources[task.part.source]
        span = task.range
        return encode_part(
            task.part,
            self._queued_blocks(task) if span is None else self._ranged_blocks(source, span, memory),
            source=source,
            log_format=self.job.plan.log_format,
            compression=self.job.plan.compression,
            place=self.place,
            progress=self._encoded,
            stop_offset=span.stop if span else None,
            read=lambda: Read(span.stop - span.start if span else task.stored_bytes, task.checksum),
        )

    def _hand_over(self, part: EncodedPart) -> None:
        with self.changed:
            try:
                self.wait_for(lambda: len(self.encoded) < self.job.workers)
            except _StoppedError:
                part.abandon()
                raise
            self.encoded.append(part)
            self.changed.notify_all()

    def _take_task(self) -> Task | None:
        with self.changed:
            self.wait_for(lambda: bool(self.tasks) or self._all_produced())
            if not self.tasks:
                return None
            task = self.tasks.popleft()
            self.changed.notify_all()
            return task

    def _all_produced(self) -> bool:
        return self.started == len(self.job.indices) and self.producing == 0

    def _queued_blocks(self, task: Task) -> Iterator[Block]:
        budget = task.budget
        assert budget
        while True:
            with self.changed:
                self.wait_for(lambda: bool(task.queue) or task.closed)
                if not task.queue:
                    return
                block = task.queue.popleft()
            yield block
            budget.free.append(block.buffer)
            with self.changed:
                budget.used -= block.stop - block.start
                self.changed.notify_all()

    def _ranged_blocks(self, source: Source, span: ByteRange, memory: np.ndarray) -> Iterator[Block]:
        for block in range_blocks(source, span, memory):
            yield block
            with self.changed:
                if self.stopped:
                    raise _StoppedError
                self.bytes += block.stop - block.start

    def _encoded(self, rows: int, rejected: int) -> None:
        with self.changed:
            self.rows += rows
            self.rejected += rejected

    # Committers: threads of their own, for a worker that waited for the disk would leave its core idle.

    def commit(self) -> None:
        while (part := self._take_encoded()) is not None:
            record = part.commit()
            with self.changed:
                self.done.add(record)
                self.done.check_hopeless(self.job, self.place)

    def _take_encoded(self) -> EncodedPart | None:
        with self.changed:
            self.wait_for(lambda: bool(self.encoded) or self.working == 0)
            if not self.encoded:
                return None
            part = self.encoded.popleft()
            self.changed.notify_all()
            return part
