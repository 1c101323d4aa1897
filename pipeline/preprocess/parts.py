"""Which lines of a source go to which split and shard: a pure function of the sources and the options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

LAST_DAY_TEST_SHARE = Fraction(95_000_000, 178_274_637)
"""AlgoPerf's: of day 23's 178,274,637 rows the first 95,000,000 are the test split."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive lines of one source that belong to one split."""

    split: str
    first_line: int
    """Counted from 0, without a header."""
    stop_line: int | None
    """None: to the end of the source."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The lines of one shard: a pure function of the sources and of the rows per shard."""

    source: int
    """Position among the sources."""
    split: str
    number: int
    """Position within its segment."""
    first_line: int
    max_lines: int

    @property
    def key(self) -> str:
        return f"{self.source:05d}-{self.split}-{self.number:05d}"


def day_segments(last: bool, lines: Callable[[], int]) -> tuple[Segment, ...]:
    """AlgoPerf's splits of one of several files: all train, but the last file first test, then validation."""
    if not last:
        return (Segment(split="train", first_line=0, stop_line=None),)
    total = lines()
    test = int(total * LAST_DAY_TEST_SHARE)
    return (
        Segment(split="test", first_line=0, stop_line=test),
        Segment(split="validation", first_line=test, stop_line=None),
    )


def tail_segments(lines: int, validation: float, test: float) -> tuple[Segment, ...]:
    """A single file split in time: train, then validation, then test, by shares of all lines."""
    test_lines = int(lines * Fraction(str(test)))
    validation_lines = int(lines * Fraction(str(validation)))
    first_test = lines - test_lines
    first_validation = first_test - validation_lines
    return (
        Segment(split="train", first_line=0, stop_line=first_validation),
        Segment(split="validation", first_line=first_validation, stop_line=first_test),
        Segment(split="test", first_line=first_test, stop_line=None),
    )


def parts_of(source: int, segments: tuple[Segment, ...], lines_per_shard: int) -> Iterator[Part]:
    """The parts of one source in order; without end where the last segment is open."""
    for segment in segments:
        first = segment.first_line
        number = 0
        while segment.stop_line is None or first < segment.stop_line:
            left = lines_per_shard if segment.stop_line is None else segment.stop_line - first
            count = min(lines_per_shard, left)
            yield Part(source=source, split=segment.split, number=number, first_line=first, max_lines=count)
            first += count
            number += 1
