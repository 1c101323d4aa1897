"""The parts of a plan on threads of this machine.

    producers ── parts and their lines ──▶ workers ── encoded parts ──▶ committers ──▶ records

Producers walk the sources and cut them into parts, workers encode them, committers wait for the disk (a worker that
did so would leave its core idle), and the caller watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.errors import InputError
from pipeline.preprocess.assignment import REPORT_SECONDS, Assignment, Done, Meter, Progress
from pipeline.preprocess.crew import Crew, Handover, ReadAhead, StoppedError
from pipeline.preprocess.encoder import EncodedPart, PartLines, RangeLines, Read, encode_part, range_parts
from pipeline.preprocess.plan import Part, Segment, parts_of
from pipeline.preprocess.workplace import PartRecord
from pipeline.source import Block, LineReader, Pieces

READ_AHEAD_BYTES = 192 << 20
"""Decompressed bytes that may wait for workers: enough that several shards of a stream are encoded at once."""


def encode_parts(assignment: Assignment, report: Callable[[Progress], None] | None) -> list[PartRecord]:
    """Encode every part that has no record yet; the records of all parts, in row order.

    Raises: whatever a thread raised first; InputError if more lines were rejected than the assignment allows.
    """
    workers = assignment.workers
    sources = [assignment.plan.sources[index] for index in assignment.indices]
    streams = sum(not source.is_plain_local() for source in sources)
    producers = max(1, min(streams, workers // 2))
    crew = Crew()
    tally = _Tally(crew, assignment)
    parts: Handover[PartLines] = Handover(crew, limit=workers, writers=producers)
    encoded: Handover[EncodedPart] = Handover(crew, limit=workers, writers=workers)
    waiting = iter(assignment.indices)
    try:
        crew.start(producers, _produce, tally, waiting, parts, READ_AHEAD_BYTES // producers)
        crew.start(workers, _encode, tally, parts, encoded)
        crew.start(workers, _commit, tally, encoded)
        crew.join(REPORT_SECONDS, lambda: report(tally.progress()) if report else None)
    finally:
        crew.stop()
        for part in encoded.rest():
            part.abandon()
    if report:
        report(tally.progress())
    return tally.done.finish()


@dataclass
class _Tally:
    """What the threads have done; every method may be called from each of them."""

    crew: Crew
    assignment: Assignment
    meter: Meter = field(default_factory=Meter)
    done: Done = field(init=False)

    def __post_init__(self) -> None:
        self.done = Done(self.assignment)

    def progress(self) -> Progress:
        with self.crew.changed:
            return self.meter.progress(self.assignment)

    def counting(self, done_bytes: int | None) -> None:
        """How far the lines of a source are counted; None when they are. Raises: StoppedError."""
        with self.crew.changed:
            self.crew.check()
            self.meter.counting = done_bytes

    def read(self, stored_bytes: int) -> None:
        with self.crew.changed:
            self.meter.bytes += stored_bytes

    def parsed(self, rows: int, rejected_rows: int) -> None:
        """Raises: StoppedError."""
        with self.crew.changed:
            self.crew.check()
            self.meter.rows += rows
            self.meter.rejected_rows += rejected_rows

    def resumed(self, record: PartRecord) -> None:
        with self.crew.changed:
            self.done.add(record)
            self.meter.resume(record)

    def committed(self, record: PartRecord) -> None:
        """Raises: InputError if too many lines were rejected for the rest to make up for it."""
        with self.crew.changed:
            self.done.add(record)
            self.done.check_hopeless()


# Producers


def _produce(tally: _Tally, waiting: Iterator[int], parts: Handover[PartLines], read_ahead_bytes: int) -> None:
    """Cut one source after another into parts, until none is `waiting` (which all producers share)."""
    plan = tally.assignment.plan
    try:
        for index in waiting:
            segments = plan.segments(index, tally.counting)
            tally.counting(None)
            if plan.sources[index].is_plain_local():
                _produce_ranges(tally, index, segments, parts)
            else:
                _produce_streams(tally, index, segments, parts, ReadAhead(tally.crew, read_ahead_bytes))
    finally:
        parts.leave()


def _produce_ranges(tally: _Tally, index: int, segments: tuple[Segment, ...], parts: Handover[PartLines]) -> None:
    for found in range_parts(tally.assignment.plan, tally.assignment.place, index, segments):
        if isinstance(found, PartRecord):
            tally.resumed(found)
        else:
            parts.put(found)


def _produce_streams(
    tally: _Tally, index: int, segments: tuple[Segment, ...], parts: Handover[PartLines], ahead: ReadAhead
) -> None:
    """Hand over each part as soon as it begins, then its blocks as they are read."""
    plan, place = tally.assignment.plan, tally.assignment.place
    source = plan.sources[index]
    coming = parts_of(index, segments, plan.rows_per_shard)
    with LineReader(source, plan.log_format, memory=ahead.memory) as reader:
        pieces = Pieces(reader, checked=source.is_standard_input)
        while not pieces.ended:
            part = next(coming)
            if record := place.find_record(part):
                for block, _ in pieces.take(part.max_lines):
                    ahead.recycle(block)
                if record.checksum != pieces.checksum:
                    raise InputError(f"standard input is not what {place.out} was begun from; give another --out")
                tally.resumed(record)
                continue
            lines = StreamLines(tally.crew, part, ahead)
            parts.put(lines)
            for block, stored_bytes in pieces.take(part.max_lines):
                lines.put(block, stored_bytes)
                tally.read(stored_bytes)
            lines.end(pieces.checksum)


class StreamLines:
    """The lines of a part of a stream: its producer puts blocks, one worker takes them."""

    def __init__(self, crew: Crew, part: Part, ahead: ReadAhead) -> None:
        self.part = part
        self._ahead = ahead
        self._blocks: Handover[Block] = Handover(crew, limit=float("inf"), writers=1)
        self._stored_bytes = 0
        self._checksum: int | None = None

    def put(self, block: Block, stored_bytes: int) -> None:
        """Raises: StoppedError."""
        self._ahead.hold(block)
        self._stored_bytes += stored_bytes
        self._blocks.put(block)

    def end(self, checksum: int | None) -> None:
        """After the last block."""
        self._checksum = checksum
        self._blocks.leave()

    def blocks(self) -> Iterator[Block]:
        for block in self._blocks:
            yield block
            self._ahead.release(block)

    def read(self) -> Read:
        return Read(bytes=self._stored_bytes, checksum=self._checksum)


# Workers


def _encode(tally: _Tally, parts: Handover[PartLines], encoded: Handover[EncodedPart]) -> None:
    try:
        for lines in parts:
            part = _encode_part(tally, lines)
            try:
                encoded.put(part)
            except StoppedError:
                part.abandon()
                raise
    finally:
        encoded.leave()


def _encode_part(tally: _Tally, lines: PartLines) -> EncodedPart:
    counts_bytes = isinstance(lines, RangeLines)  # those of a stream are counted as they are read

    def on_lines(rows: int, rejected_rows: int, parsed_bytes: int) -> None:
        tally.parsed(rows, rejected_rows)
        if counts_bytes:
            tally.read(parsed_bytes)

    return encode_part(lines, tally.assignment.plan, tally.assignment.place, on_lines)


# Committers


def _commit(tally: _Tally, encoded: Handover[EncodedPart]) -> None:
    for part in encoded:
        tally.committed(part.commit())
