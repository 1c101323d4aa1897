"""What all workers of one call share: what is to be encoded, how far they are, and when they must give up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import InputError
from pipeline.preprocess.config import Allowance
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.workplace import PartRecord, Workplace

REPORT_SECONDS = 0.1
HOPELESS_AFTER_LINES = 1_000_000
"""From here on encoding stops early if the share of rejects leaves no doubt; shorter logs are read to their end."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far preprocessing is, parts that earlier calls finished included."""

    stage: Literal["counting lines", "encoding"]
    rows: int
    rejected_rows: int
    bytes: int
    """Of the sources as stored; while lines are counted, of the source that is being counted."""
    total_bytes: int | None
    """None for standard input."""
    seconds: float
    """Since this call began."""
    resumed_rows: int
    resumed_bytes: int
    """What earlier calls had finished, which says nothing about the speed of this one."""

    @property
    def rows_per_second(self) -> float:
        """Of this call so far."""
        return (self.rows - self.resumed_rows) / max(self.seconds, 1e-9)

    @property
    def bytes_per_second(self) -> float:
        """Of this call so far, as stored."""
        return (self.bytes - self.resumed_bytes) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None while nobody knows."""
        if self.stage != "encoding" or self.total_bytes is None or self.bytes_per_second <= 0:
            return None
        return (self.total_bytes - self.bytes) / self.bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What is to be encoded, how and where."""

    plan: Plan
    place: Workplace
    workers: int
    allowance: Allowance
    began: float
    """time.monotonic() when the call began."""
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


@dataclass(kw_only=True)
class Meter:
    """What has been read and encoded so far; whoever shares one guards it."""

    counting: int | None = None
    """Bytes of the source whose lines are being counted."""
    rows: int = 0
    rejected_rows: int = 0
    bytes: int = 0
    resumed_rows: int = 0
    resumed_bytes: int = 0

    def add(self, record: PartRecord) -> None:
        """Count a whole part."""
        self.rows += record.rows
        self.rejected_rows += record.rejected_rows
        self.bytes += record.bytes

    def resume(self, record: PartRecord) -> None:
        """Count a part that an earlier call finished."""
        self.add(record)
        self.resumed_rows += record.rows
        self.resumed_bytes += record.bytes

    def progress(self, assignment: Assignment) -> Progress:
        """How far the assignment is."""
        return Progress(
            stage="encoding" if self.counting is None else "counting lines",
            rows=self.rows,
            rejected_rows=self.rejected_rows,
            bytes=self.bytes if self.counting is None else self.counting,
            total_bytes=assignment.total_bytes,
            seconds=time.monotonic() - assignment.began,
            resumed_rows=self.resumed_rows,
            resumed_bytes=self.resumed_bytes,
        )


@dataclass
class Done:
    """The parts of an assignment that are done."""

    assignment: Assignment
    records: list[PartRecord] = field(default_factory=list)
    rejected_rows: int = 0
    lines: int = 0
    bytes: int = 0

    def add(self, record: PartRecord) -> None:
        self.records.append(record)
        self.rejected_rows += record.rejected_rows
        self.lines += record.lines
        self.bytes += record.bytes

    def in_order(self) -> list[PartRecord]:
        """The records in row order."""
        return sorted(self.records, key=lambda record: (record.source, record.first_line))

    def check_hopeless(self) -> None:
        """Raises: InputError if so many lines were rejected that the rest cannot make up for it."""
        # Twice the lines that the bytes so far suggest: a bad stretch early on does not condemn a good log.
        total_bytes = self.assignment.total_bytes
        lines = float("inf") if total_bytes is None else 2 * self.lines * total_bytes / max(self.bytes, 1)
        if self.lines >= HOPELESS_AFTER_LINES and self.assignment.allowance.exceeded(self.rejected_rows, lines):
            raise self._too_many_rejects()

    def finish(self) -> list[PartRecord]:
        """The records in row order. Raises: InputError if more lines were rejected than the assignment allows."""
        if self.assignment.allowance.exceeded(self.rejected_rows, self.lines):
            raise self._too_many_rejects()
        return self.in_order()

    def _too_many_rejects(self) -> InputError:
        """The error that names the first rejected lines."""
        place = self.assignment.place
        first: list[str] = []
        for record in self.in_order():
            if record.rejected_rows and len(first) < 3:
                with place.rejects_file(record.key).open("rb") as file:
                    for raw, _ in zip(file, range(3 - len(first)), strict=False):
                        _, number, why, _ = raw.decode("utf-8", "replace").split("\t", 3)
                        first.append(f"{self.assignment.plan.sources[record.source].label}:{number}: {why}")
        return InputError(
            f"{self.rejected_rows:,} of {self.lines:,} lines read cannot be used, more than --max-rejects "
            f"{self.assignment.allowance.text} allows: "
            f"{'; '.join(first)}{'; ...' if self.rejected_rows > len(first) else ''} (all are in "
            f"{place.rejects_folder}); correct the log, describe another with --format, or raise --max-rejects"
        )
