"""One part of a log → one staged shard, its rejected lines and its record: what every engine runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.encode import Counts, make_group, make_layout, make_rejects, make_scratch, parse, reason
from pipeline.preprocess.parts import Part
from pipeline.schema import ROW_GROUP_ROWS, LogFormat
from pipeline.shards import Compression, Shard, ShardWriter, sync_file, sync_folder, write_atomically
from pipeline.source import Block, Source


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """That a part is done, and all that the manifest needs from it."""

    key: str
    source: int
    split: str
    first_line: int
    lines: int
    rows: int
    rejected_rows: int
    bytes: int
    """Of the source as stored."""
    stop_offset: int | None
    """File position after the part, for a plain local file."""
    checksum: int | None
    """CRC-32 of the part's lines, for standard input, which has no size or time that could tell it from another."""
    shard_bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    row_group_bytes: tuple[int, ...]
    row_group_crc32: tuple[int, ...] = ()
    """() for a part that an earlier version encoded."""

    def shard(self, path: str) -> Shard:
        """The part's shard, listed under `path`."""
        return Shard(
            path=path,
            rows=self.rows,
            bytes=self.shard_bytes,
            sha256=self.sha256,
            row_groups=tuple(self.row_groups),
            row_group_bytes=tuple(self.row_group_bytes),
            row_group_crc32=tuple(self.row_group_crc32),
        )


class Read(NamedTuple):
    """What was read for a part."""

    bytes: int
    """Of the source as stored."""
    checksum: int | None
    """See PartRecord."""


class Workplace:
    """DATA/.work: what a run has finished before the manifest can be written."""

    def __init__(self, out: Path) -> None:
        self.root = out / ".work"
        self.plan_file = self.root / "plan.json"
        self.rejects_folder = self.root / "rejects"

    def make_folders(self) -> None:
        for name in ("shards", "rejects", "counts", "done"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def shard_file(self, key: str) -> Path:
        return self.root / "shards" / f"{key}.parquet"

    def rejects_file(self, key: str) -> Path:
        return self.rejects_folder / f"{key}.tsv"

    def counts_file(self, key: str) -> Path:
        return self.root / "counts" / f"{key}.counts"

    def record_file(self, key: str) -> Path:
        return self.root / "done" / f"{key}.json"

    def has_records(self) -> bool:
        """Whether any part is done."""
        return any((self.root / "done").glob("*.json"))

    def find_record(self, part: Part) -> PartRecord | None:
        """The record of a part that is done, else None. Records are written last, so one that exists is whole."""
        try:
            values = json.loads(self.record_file(part.key).read_bytes())
        except FileNotFoundError:
            return None
        return PartRecord(**values)


class EncodedPart:
    """A part that is encoded and written, but not yet durable: `commit` makes it done, `abandon` undone."""

    def __init__(self, encoder: _PartEncoder, read: Read, stop_offset: int | None) -> None:
        self._encoder = encoder
        self._read = read
        self._stop_offset = stop_offset

    def commit(self) -> PartRecord:
        """Wait until the disk has the shard, its rejects and its counts; then write the record."""
        try:
            return self._commit()
        finally:
            self.abandon()

    def _commit(self) -> PartRecord:
        part, place, counts = self._encoder.part, self._encoder.place, self._encoder.counts
        shard = self._encoder.writer.finish(part.key) if counts.rows else None
        if self._encoder.rejected_rows:
            sync_file(place.rejects_file(part.key))
        counts.save(place.counts_file(part.key))
        for path in (place.rejects_file(part.key), place.counts_file(part.key)):
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
            stop_offset=self._stop_offset,
            checksum=self._read.checksum,
            shard_bytes=shard.bytes if shard else 0,
            sha256=shard.sha256 if shard else "",
            row_groups=shard.row_groups if shard else (),
            row_group_bytes=shard.row_group_bytes if shard else (),
            row_group_crc32=shard.row_group_crc32 if shard else (),
        )
        write_atomically(place.record_file(part.key), json.dumps(asdict(record)).encode())
        return record

    def abandon(self) -> None:
        """Remove the shard unless it is done."""
        self._encoder.writer.abandon()


def encode_part(
    part: Part,
    blocks: Iterable[Block],
    *,
    source: Source,
    log_format: LogFormat,
    compression: Compression,
    place: Workplace,
    progress: Callable[[int, int], None],
    stop_offset: int | None,
    read: Callable[[], Read],
) -> EncodedPart:
    """Parse `blocks` (one line at least) and write the part's shard and rejects.

    `progress` gets rows and rejected lines as they are found; `read` is asked after the last block.
    """
    encoder = _PartEncoder(part, source, log_format, compression, place)
    try:
        for block in blocks:
            encoder.add(block, progress)
        encoder.flush()
    except BaseException:
        encoder.writer.abandon()
        raise
    assert encoder.lines
    return EncodedPart(encoder, read(), stop_offset)


class _PartEncoder:
    """Takes the blocks of one part: rows go to its shard a row group at a time, other lines to its rejects."""

    def __init__(
        self, part: Part, source: Source, log_format: LogFormat, compression: Compression, place: Workplace
    ) -> None:
        self.part, self.place = part, place
        self.counts = Counts(log_format)
        self.lines = self.rejected_rows = 0
        self._source, self._log_format = source, log_format
        self._layout, self._scratch, self._rejects = make_layout(log_format), make_scratch(log_format), make_rejects()
        self._group = make_group(log_format, ROW_GROUP_ROWS)
        self._filled = 0
        self._rejects_path = place.rejects_file(part.key)
        self._rejects_path.unlink(missing_ok=True)  # an earlier run may have left some
        self.writer = ShardWriter(place.shard_file(part.key), log_format, compression)

    def add(self, block: Block, progress: Callable[[int, int], None]) -> None:
        """Encode the lines of a block."""
        position = block.start
        while position < block.stop:
            before = self._filled
            position, self._filled, taken, rejected = parse(
                block.buffer,
                position,
                block.stop,
                self._layout,
                self._group,
                before,
                self.counts.tally,
                self._rejects,
                self._scratch,
            )
            if rejected:
                self._keep_rejects(block, rejected)
            progress(self._filled - before, rejected)
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
                group.label[:rows], group.dense[:, :rows], group.present[:, :rows], group.buckets[:, :rows]
            )
        self._filled = 0

    def _keep_rejects(self, block: Block, count: int) -> None:
        first_number = self.part.first_line + 1 + self._log_format.header + self.lines
        rejects = self._rejects
        with self._rejects_path.open("ab") as file:
            for i in range(count):
                line = block.buffer[rejects.starts[i] : rejects.stops[i]].tobytes()
                why = reason(self._log_format, int(rejects.codes[i]), int(rejects.fields[i]), line)
                number = first_number + int(rejects.lines[i])
                file.write(f"{self._source.address}\t{number}\t{why}\t".encode() + line + b"\n")
