"""What preprocessing would take, from the plan and a measured second of work."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.addresses import shown_path, uri_of
from pipeline.errors import InputError
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.encoder import Read, encode_part
from pipeline.preprocess.generations import plan_addition
from pipeline.preprocess.plan import Part, Plan
from pipeline.preprocess.workplace import PartRecord, Workplace
from pipeline.schema import SPLITS
from pipeline.shards import MANIFEST, Manifest, RemoteFolder, cache_folder, free_bytes
from pipeline.source import Block, LineReader
from pipeline.stages import usable_cores


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
    """Of the disk that the data folder would lie on, or what is to be uploaded."""
    workers: int
    rows_per_second: float
    """All workers together, should the disks keep up."""
    seconds: float
    """With counting the lines first, if the splits depend on them."""
    rejected_share: float
    """Of the lines that were read for this."""


def forecast(config: PreprocessConfig, *, measure_seconds: float = 1.0) -> Forecast:
    """Encode the beginning of the first source for about a second, on one core, and scale up. Nothing is kept.

    Of what is to be appended to a folder, the sources that it has already are left out.

    Compiling the encoder, once after installing, is not part of the forecast.

    Raises: InputError if the sources cannot be used, or are standard input, whose length nobody knows, or if there is
    nothing to append.
    """
    plan = _plan(config)
    if plan.sources[0].is_standard_input:
        raise InputError("standard input (-) cannot be forecast; name the files instead")
    _encode_beginning(plan, 0.0)  # compiles what is not compiled yet, which takes long and happens once
    sample = _encode_beginning(plan, measure_seconds)
    found = sample.record.lines - sample.record.rejected_rows
    kept = sample.record.rows / found or plan.keep_negatives if plan.keep_negatives < 1 else 1.0
    expected = _expect(plan, rows_a_byte=found / max(sample.record.bytes, 1), train_kept=kept)
    source_bytes = sum(source.size or 0 for source in plan.sources)
    # What was measured, as often as it fits into the sources; and into those whose lines are counted first.
    times = source_bytes / max(sample.record.bytes, 1)
    rows = sum(expected.rows.values())
    counting_times = expected.counted_bytes / max(sample.record.bytes, 1)
    workers = config.workers or usable_cores()
    return Forecast(
        sources=tuple(source.address for source in plan.sources),
        files=plan.files_by_split(),
        described=plan.described,
        notices=plan.notices,
        split=plan.split,
        source_bytes=source_bytes,
        rows=rows,
        splits=expected.rows,
        shards=expected.shards,
        disk_bytes=round(sample.record.shard_bytes * times * rows / (kept * max(expected.log_rows, 1))),
        free_bytes=free_bytes(config.out if uri_of(config.out) is None else cache_folder(None)),
        workers=workers,
        rows_per_second=sample.record.rows / sample.seconds * workers,
        seconds=sample.reading_seconds * counting_times + sample.seconds * times / workers,
        rejected_share=sample.record.rejected_rows / sample.record.lines,
    )


def _plan(config: PreprocessConfig) -> Plan:
    uri = uri_of(config.out)
    if not config.append or not _is_there(config.out, uri):
        return Plan.make(config)
    plan, _ = plan_addition(config, Manifest.load(uri or config.out))
    if plan is None:
        raise InputError(f"nothing to do: {shown_path(config.out)} has these sources already")
    return plan


def _is_there(out: Path, uri: str | None) -> bool:
    """Whether there is a data folder that is complete."""
    if uri is None:
        return (out / MANIFEST).exists()
    try:
        RemoteFolder(uri).read(MANIFEST)
    except FileNotFoundError:
        return False
    return True


class _Sample(NamedTuple):
    """The beginning of the first source, encoded."""

    record: PartRecord
    seconds: float
    reading_seconds: float
    """Of these, spent on getting lines."""


class _Beginning:
    """The lines of a source until some seconds have passed, at least one block of them."""

    def __init__(self, reader: LineReader, seconds: float) -> None:
        self.part = Part(source=0, split="train", number=0, first_line=0, max_lines=0)
        self.reading_seconds = 0.0
        self._reader, self._seconds = reader, seconds
        self._stored_bytes = 0

    def blocks(self) -> Iterator[Block]:
        began = asked = time.monotonic()
        for block in self._reader:
            self.reading_seconds += time.monotonic() - asked
            self._stored_bytes = self._reader.stored_bytes
            yield block
            if (asked := time.monotonic()) - began > self._seconds:
                return

    def read(self) -> Read:
        return Read(bytes=self._stored_bytes)


def _encode_beginning(plan: Plan, seconds: float) -> _Sample:
    """Raises: InputError for a source without a row."""
    source = plan.sources[0]
    with tempfile.TemporaryDirectory() as folder, LineReader(source, plan.log_format) as reader:
        place = Workplace(Path(folder))
        place.make_folders()
        beginning = _Beginning(reader, seconds)
        began = time.monotonic()
        record = encode_part(beginning, plan, place).commit()
        ended = time.monotonic()
    if record.rejected_rows == record.lines:
        which = f"its first {record.lines:,}" if record.lines else "0"
        raise InputError(f"{source.address}: no row among {which} lines; name a log that has some")
    return _Sample(record=record, seconds=ended - began, reading_seconds=beginning.reading_seconds)


class _Expected(NamedTuple):
    """What the sources would become."""

    rows: dict[str, int]
    """By split."""
    log_rows: int
    """Those before rows of label 0 are left out."""
    shards: int
    counted_bytes: int
    """Of the sources whose lines must be counted before they can be split."""


def _expect(plan: Plan, rows_a_byte: float, train_kept: float) -> _Expected:
    """`train_kept`: the share of the training rows that are not left out."""
    rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
    shards = 0
    counted: set[int] = set()
    for index, source in enumerate(plan.sources):
        lines = round((source.size or 0) * rows_a_byte)

        def count(index: int = index, lines: int = lines) -> int:
            counted.add(index)
            return lines

        for segment in plan.segments_of(index, count):
            segment_rows = (lines if segment.stop_line is None else segment.stop_line) - segment.first_line
            rows[segment.split] += segment_rows
            shards += -(-segment_rows // plan.rows_per_shard)
    log_rows = sum(rows.values())
    rows["train"] = round(rows["train"] * train_kept)
    counted_bytes = sum(plan.sources[index].size or 0 for index in counted)
    return _Expected(rows=rows, log_rows=log_rows, shards=shards, counted_bytes=counted_bytes)
