"""What preprocessing would take, from the plan and a measured second of work."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.errors import InputError
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.encoder import Read, Workplace, encode_part
from pipeline.preprocess.job import worker_count
from pipeline.preprocess.parts import Part
from pipeline.preprocess.plan import Plan
from pipeline.schema import SPLITS
from pipeline.source import Block, LineReader


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The plan and what it would cost; rows, disk and time are estimates."""

    sources: tuple[str, ...]
    files: dict[str, list[str]]
    """The files that give each split its rows, in order."""
    described: tuple[str, ...]
    """The same in lines for people."""
    notices: tuple[str, ...]
    """What a user should know of how the sources were chosen."""
    split: str
    source_bytes: int
    """As stored."""
    rows: int
    splits: dict[str, int]
    """Rows of each."""
    shards: int
    disk_bytes: int
    free_bytes: int
    """Of the disk that the data folder would lie on."""
    workers: int
    rows_per_second: float
    """All workers together, should the disks keep up."""
    seconds: float
    """With counting the lines first, where the splits depend on them."""
    rejected_share: float
    """Of the lines that were read for this."""


def forecast(config: PreprocessConfig, *, measure_seconds: float = 1.0) -> Forecast:
    """Encode the beginning of the first source for about a second, on one core, and scale up. Nothing is kept.

    Raises: InputError where the sources cannot be used, or are standard input, whose length nobody knows.
    """
    plan = Plan.make(config)
    if plan.sources[0].is_standard_input:
        raise InputError("standard input (-) cannot be forecast; name the files instead")
    source = plan.sources[0]
    part = Part(source=0, split="train", number=0, first_line=0, max_lines=0)
    stored, reading = 0, 0.0
    with tempfile.TemporaryDirectory() as folder, LineReader(source, plan.log_format) as reader:
        place = Workplace(Path(folder))
        place.make_folders()

        def beginning() -> Iterator[Block]:
            nonlocal stored, reading
            asked = time.monotonic()
            for block in blocks:
                reading += time.monotonic() - asked
                yield block
                stored = reader.stored_bytes
                if (asked := time.monotonic()) - began > measure_seconds:
                    return

        began = time.monotonic()
        blocks = iter(reader)
        if (first := next(blocks, None)) is None:
            raise InputError(f"{source.address}: no row among 0 lines; name a log that has some")
        reading = time.monotonic() - began
        blocks = chain([first], blocks)
        encoded = encode_part(
            part,
            beginning(),
            source=source,
            log_format=plan.log_format,
            compression=plan.compression,
            place=place,
            progress=lambda rows, rejected: None,
            stop_offset=None,
            read=lambda: Read(stored, None),
        )
        record = encoded.commit()
        seconds = time.monotonic() - began
    if not record.rows:
        raise InputError(f"{source.address}: no row among its first {record.lines:,} lines; name a log that has some")
    sizes = [each.size or 0 for each in plan.sources]
    share = sum(sizes) / max(stored, 1)
    rows_a_byte = record.rows / max(stored, 1)
    splits: dict[str, int] = dict.fromkeys(SPLITS, 0)
    shards = counted_bytes = 0

    def lines_of(index: int) -> int:
        nonlocal counted_bytes
        counted_bytes += sizes[index]
        return round(sizes[index] * rows_a_byte)

    for index, size in enumerate(sizes):
        rows = round(size * rows_a_byte)
        for segment in plan.segments_of(index, lambda index=index: lines_of(index)):
            count = (rows if segment.stop_line is None else segment.stop_line) - segment.first_line
            splits[segment.split] += count
            shards += -(-count // plan.rows_per_shard)
    counting = reading * counted_bytes / max(stored, 1)
    workers = worker_count(config.workers)
    return Forecast(
        sources=tuple(each.address for each in plan.sources),
        files=plan.files_by_split(),
        described=plan.described,
        notices=plan.notices,
        split=plan.split,
        source_bytes=sum(sizes),
        rows=sum(splits.values()),
        splits=splits,
        shards=shards,
        disk_bytes=round(record.shard_bytes * share),
        free_bytes=_free_bytes(config.out),
        workers=workers,
        rows_per_second=record.rows / seconds * workers,
        seconds=counting + seconds * share / workers,
        rejected_share=record.rejected_rows / record.lines,
    )


def _free_bytes(path: Path) -> int:
    """Of the disk that `path`, which need not exist, lies on."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
