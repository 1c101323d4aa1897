"""What a run of preprocessing has to do, how far it is, and when it must give up: common to every engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import InputError
from pipeline.preprocess.config import Allowance
from pipeline.preprocess.encoder import PartRecord, Workplace
from pipeline.preprocess.plan import Plan

REPORT_SECONDS = 0.1
HOPELESS_AFTER_LINES = 1_000_000
"""From here on a run stops early where the share of rejects leaves no doubt; shorter logs are read to their end."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, earlier runs' finished parts included."""

    stage: Literal["counting lines", "encoding"]
    rows: int
    rejected_rows: int
    bytes: int
    """Of the sources as stored; while lines are counted, of the source that is being counted."""
    total_bytes: int | None
    """None for standard input."""
    seconds: float
    """Since this run began."""
    resumed_rows: int
    resumed_bytes: int
    """What earlier runs had finished: no part of this run's speed."""

    @property
    def rows_per_second(self) -> float:
        """Of this run so far."""
        return (self.rows - self.resumed_rows) / max(self.seconds, 1e-9)

    @property
    def bytes_per_second(self) -> float:
        """Of this run so far, as stored."""
        return (self.bytes - self.resumed_bytes) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None while nobody knows."""
        if self.stage != "encoding" or self.total_bytes is None or self.bytes_per_second <= 0:
            return None
        return (self.total_bytes - self.bytes) / self.bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be encoded, and how."""

    plan: Plan
    workers: int
    allowance: Allowance
    began: float
    """time.monotonic() when the run began."""
    only: int | None = None
    """Position of the one source to encode; None: all of them."""

    @property
    def total_bytes(self) -> int | None:
        sizes = [source.size for source in self.plan.sources]
        return None if None in sizes else sum(size for size in sizes if size)

    @property
    def indices(self) -> Sequence[int]:
        """Positions of the sources to encode."""
        return range(len(self.plan.sources)) if self.only is None else (self.only,)


@dataclass
class Done:
    """The parts that are done."""

    records: list[PartRecord] = field(default_factory=list)
    rows: int = 0
    rejected_rows: int = 0
    lines: int = 0
    bytes: int = 0

    def add(self, record: PartRecord) -> None:
        self.records.append(record)
        self.rows += record.rows
        self.rejected_rows += record.rejected_rows
        self.lines += record.lines
        self.bytes += record.bytes

    def in_order(self) -> list[PartRecord]:
        """The records in row order."""
        return sorted(self.records, key=lambda record: (record.source, record.first_line))

    def check_hopeless(self, job: Job, place: Workplace) -> None:
        """Raises: InputError where so many lines were rejected that the rest cannot make up for it."""
        # Twice the lines that the bytes so far suggest: a bad stretch early on does not condemn a good log.
        total = job.total_bytes
        lines = float("inf") if total is None else 2 * self.lines * total / max(self.bytes, 1)
        if self.lines >= HOPELESS_AFTER_LINES and job.allowance.exceeded(self.rejected_rows, lines):
            raise too_many_rejects(job, place, self.in_order())

    def finish(self, job: Job, place: Workplace) -> list[PartRecord]:
        """The records in row order. Raises: InputError where more lines were rejected than the job allows."""
        records = self.in_order()
        if job.allowance.exceeded(self.rejected_rows, self.lines):
            raise too_many_rejects(job, place, records)
        return records


def worker_count(wanted: int | None) -> int:
    """The workers asked for, or one for every core this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def too_many_rejects(job: Job, place: Workplace, records: list[PartRecord]) -> InputError:
    """The error that names the first rejected lines."""
    first: list[str] = []
    for record in records:
        if record.rejected_rows and len(first) < 3:
            with place.rejects_file(record.key).open("rb") as file:
                for raw, _ in zip(file, range(3 - len(first)), strict=False):
                    _, number, why, _ = raw.decode("utf-8", "replace").split("\t", 3)
                    first.append(f"{job.plan.sources[record.source].label}:{number}: {why}")
    rejected, lines = (sum(getattr(record, name) for record in records) for name in ("rejected_rows", "lines"))
    return InputError(
        f"{rejected:,} of {lines:,} lines read cannot be used, more than --max-rejects {job.allowance.text} allows: "
        f"{'; '.join(first)}{'; ...' if rejected > len(first) else ''} (all are in {place.rejects_folder}); "
        "correct the log, describe another with --format, or raise --max-rejects"
    )
