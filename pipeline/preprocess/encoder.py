"""The lines of one part → one staged shard, its rejected lines and its record: what every engine does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.encode import (
    Counts,
    keep_negatives,
    make_group,
    make_layout,
    make_rejects,
    make_scratch,
    parse,
    rejected_lines,
)
from pipeline.preprocess.plan import Part, Plan, Segment, parts_of
from pipeline.preprocess.workplace import PartRecord, Workplace, save_record
from pipeline.schema import ROW_GROUP_ROWS
from pipeline.shards import ShardWriter, sync_file, sync_folder
from pipeline.source import Block, ByteRange, RangeFinder, Source, new_memory, range_blocks

OnLines = Callable[[int, int, int], None]
"""Is told of lines that were parsed: how many are rows, how many were rejected, and their bytes."""


class Read(NamedTuple):
    """What was read for a part."""

    bytes: int
    """Of the source as stored."""
    checksum: int | None = None
    """See PartRecord."""
    stop_offset: int | None = None
    """See PartRecord."""


class PartLines(Protocol):
    """The lines of one part on their way to its shard."""

    @property
    def part(self) -> Part: ...

    def blocks(self) -> Iterator[Block]:
        """The lines in order; a block is valid until the next one is asked for."""
        ...

    def read(self) -> Read:
        """What was read for them; asked after the last block."""
        ...


@dataclass(frozen=True, kw_only=True)
class RangeLines:
    """The lines of a part of a plain local file, which every worker can read for itself."""

    part: Part
    source: Source
    range: ByteRange

    def blocks(self) -> Iterator[Block]:
        return range_blocks(self.source, self.range, new_memory())

    def read(self) -> Read:
        return Read(bytes=self.range.stop - self.range.start, stop_offset=self.range.stop)


def range_parts(
    plan: Plan, place: Workplace, index: int, segments: tuple[Segment, ...]
) -> Iterator[PartRecord | RangeLines]:
    """The parts of plain local source `index` in row order: the record of one that is done, the lines of any other."""
    source = plan.sources[index]
    with RangeFinder(source, plan.log_format) as finder:
        for part in parts_of(index, segments, plan.rows_per_shard):
            record = place.find_record(part)
            if record and record.stop_offset is not None:
                finder.skip_to(record.stop_offset)
                lines = record.lines
                yield record
            else:
                found = finder.next_range(part.max_lines)
                lines = found.lines
                if lines:
                    yield RangeLines(part=part, source=source, range=found)
            if lines < part.max_lines:
                return


class EncodedPart:
    """A part that is encoded and written, but not yet durable: `commit` makes it done, `abandon` undone."""

    def __init__(self, encoder: _PartEncoder, read: Read) -> None:
        self._encoder = encoder
        self._read = read

    def commit(self) -> PartRecord:
        """Wait until the disk has the shard, its rejects and its counts; then write the record."""
        try:
            return self._commit()
        finally:
            self.abandon()

    def _commit(self) -> PartRecord:
        part, place, counts = self._encoder.part, self._encoder.place, self._encoder.counts
        rejects_file, counts_file = place.rejects_file(part.key), place.counts_file(part.key)
        shard = self._encoder.writer.finish(part.key) if counts.rows else None
        if self._encoder.rejected_rows:
            sync_file(rejects_file)
        counts.save(counts_file)
        sync_file(counts_file)
        for path in (rejects_file, counts_file):
            sync_folder(path.parent)
        record = PartRecord(
            key=part.key,
            source=part.source,
            split=part.split,
            first_line=part.first_line,
            lines=self._encoder.lines,
            rows=counts.rows,
            rejected_rows=self._encoder.rejected_rows,
            bytes=self._read.bytes,
            stop_offset=self._read.stop_offset,
            checksum=self._read.checksum,
            shard_bytes=shard.bytes if shard else 0,
            sha256=shard.sha256 if shard else "",
            row_groups=shard.row_groups if shard else (),
            row_group_bytes=shard.row_group_bytes if shard else (),
            counts_bytes=counts_file.stat().st_size,
            rejects_bytes=rejects_file.stat().st_size if self._encoder.rejected_rows else 0,
            row_group_crc32=shard.row_group_crc32 if shard else (),
        )
        save_record(place, record)
        return record

    def abandon(self) -> None:
        """Remove the shard unless it is done."""
        self._encoder.writer.abandon()


def encode_part(lines: PartLines, plan: Plan, place: Workplace, on_lines: OnLines | None = None) -> EncodedPart:
    """Parse the lines and write the shard and the rejects of their part."""
    encoder = _PartEncoder(lines.part, plan, place)
    try:
        for block in lines.blocks():
            encoder.add(block, on_lines)
        encoder.flush()
    except BaseException:
        encoder.writer.abandon()
        raise
    return EncodedPart(encoder, lines.read())


class _PartEncoder:
    """Takes the blocks of one part: rows go to its shard a row group at a time, other lines to its rejects."""

    def __init__(self, part: Part, plan: Plan, place: Workplace) -> None:
        self.part, self.place = part, place
        self.counts = Counts(plan.log_format)
        self.lines = self.rejected_rows = 0
        self._source, self._log_format = plan.sources[part.source], plan.log_format
        self._layout, self._scratch = make_layout(plan.log_format), make_scratch(plan.log_format)
        self._rejects = make_rejects()
        self._group = make_group(plan.log_format, ROW_GROUP_ROWS)
        self._kept = plan.keep_negatives if part.split == "train" else 1.0
        self._source_number = plan.first_source + part.source
        self._filled = 0
        self._rejects_path = place.rejects_file(part.key)
        self._rejects_path.unlink(missing_ok=True)  # an earlier call may have left some
        self.writer = ShardWriter(place.shard_file(part.key), plan.log_format, plan.compression)

    def add(self, block: Block, on_lines: OnLines | None) -> None:
        """Encode the lines of a block."""
        position = block.start
        while position < block.stop:
            start, before = position, self._filled
            position, self._filled, taken, rejected = parse(
                block.buffer,
                start,
                block.stop,
                self._layout,
                self._group,
                before,
                self.counts.tally,
                self._rejects,
                self._scratch,
                keep_negatives(self._kept, source=self._source_number, first_line=self.part.first_line + self.lines),
            )
            if rejected:
                self._keep_rejects(block, rejected)
            if on_lines:
                on_lines(self._filled - before, rejected, position - start)
            self.counts.dropped += taken - rejected - (self._filled - before)
            self.lines += taken
            self.rejected_rows += rejected
            if self._filled == ROW_GROUP_ROWS:
                self.flush()

    def flush(self) -> None:
        """Write the rows so far as a row group."""
        rows, group = self._filled, self._group
        if rows:
            self.counts.add_group(group, rows)
            self.writer.write_group(
                group.label[:rows],
                group.dense[:, :rows],
                group.present[:, :rows],
                group.buckets[:, :rows],
                group.weight[:rows] if self._log_format.weight else None,
            )
        self._filled = 0

    def _keep_rejects(self, block: Block, count: int) -> None:
        first_number = self.part.first_line + 1 + self._log_format.header + self.lines
        with self._rejects_path.open("ab") as file:
            for each in rejected_lines(self._log_format, block.buffer, self._rejects, count):
                file.write(each.as_row(self._source.address, first_number + each.index))
