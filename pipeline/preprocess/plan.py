"""What is to be preprocessed: the sources, and which of their lines go to which split and shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.preprocess.config import PreprocessConfig, SplitRule
from pipeline.preprocess.formats import find_format, with_bucket_sizes
from pipeline.schema import Compression, LogFormat
from pipeline.shards import KEEP_NEGATIVES, describe_files, files_by_split
from pipeline.source import Source, check_sources, count_lines, find_sources

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
    """The parts of one source in order; without end if the last segment is open."""
    for segment in segments:
        first = segment.first_line
        number = 0
        while segment.stop_line is None or first < segment.stop_line:
            left = lines_per_shard if segment.stop_line is None else segment.stop_line - first
            count = min(lines_per_shard, left)
            yield Part(source=source, split=segment.split, number=number, first_line=first, max_lines=count)
            first += count
            number += 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the output depends on."""

    sources: tuple[Source, ...]
    log_format: LogFormat
    split: str
    """A split rule other than `auto`."""
    validation: float
    test: float
    rows_per_shard: int
    compression: Compression
    keep_negatives: float = 1.0
    """Share of the training rows of label 0 that are kept."""
    first_source: int = 0
    """Number of the first source among those of all generations, by which these rows are drawn."""
    notices: tuple[str, ...] = field(default=(), compare=False)
    """What a user should know of how the sources were chosen; no part of what the output depends on."""

    @classmethod
    def make(cls, config: PreprocessConfig) -> Plan:
        """The plan that the options stand for now.

        Raises: InputError for sources or a format that cannot be used, the same log twice, or a split rule that the
        sources do not allow.
        """
        log_format = find_format(config.format)
        if config.bucket_sizes is not None:
            log_format = with_bucket_sizes(log_format, config.bucket_sizes)
        sources, notices = find_sources(config.sources)
        check_sources(sources, log_format)
        return cls(
            sources=sources,
            notices=notices,
            log_format=log_format,
            split=split_rule(config.split, sources),
            validation=config.validation,
            test=config.test,
            rows_per_shard=config.rows_per_shard,
            compression=config.compression,
            keep_negatives=config.keep_negatives,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values, to be compared with that of another call."""
        values: dict[str, Any] = {
            "sources": [{**asdict(source), "name": source.address} for source in self.sources],
            "format": self.log_format.to_dict(),
            "split": self.split,
            "rows_per_shard": self.rows_per_shard,
            "compression": self.compression,
        }
        values |= {"validation": self.validation, "test": self.test} if self.split == "tail" else {}
        if self.keep_negatives < 1:
            values |= {KEEP_NEGATIVES: self.keep_negatives}
            values |= {"first_source": self.first_source} if self.first_source else {}
        return json.loads(json.dumps(values))

    def files_by_split(self) -> dict[str, list[str]]:
        """Which files, in order, give each split its rows; the last one or the only one may give to several."""
        return files_by_split(self.to_dict())

    @property
    def described(self) -> tuple[str, ...]:
        """Lines that say which files train, validate and test."""
        return tuple(describe_files(self.to_dict()))

    def segments(self, index: int, counted: Callable[[int], None]) -> tuple[Segment, ...]:
        """Which lines of source `index` belong to which split; counts its lines if that depends on them.

        `counted` gets the stored bytes read so far.
        """
        return self.segments_of(index, lambda: count_lines(self.sources[index], self.log_format, counted))

    def segments_of(self, index: int, lines: Callable[[], int]) -> tuple[Segment, ...]:
        """Which of the source's `lines` lines belong to which split; `lines` is called if that depends on them."""
        if self.split == "days":
            return day_segments(last=index == len(self.sources) - 1, lines=lines)
        if self.split == "tail":
            return tail_segments(lines(), self.validation, self.test)
        return (Segment(split=self.split, first_line=0, stop_line=None),)


def split_rule(split: SplitRule, sources: tuple[Source, ...]) -> str:
    if sources[0].is_standard_input:
        if split in ("days", "tail"):
            raise InputError(f"--split {split} needs to know how long the input is; - allows train, validation or test")
        return "train" if split == "auto" else split
    if split == "auto":
        return "days" if len(sources) > 1 else "tail"
    if split == "days" and len(sources) == 1:
        raise InputError("--split days needs at least two files, and one was given; use --split tail")
    if split == "tail" and len(sources) > 1:
        raise InputError(f"--split tail is for a single file, and {len(sources)} were given; use --split days")
    return split


def check_same_plan(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises: InputError that names the first difference between the plan `out` was begun with and another."""
    if before == now:
        return
    remedy = f"give another --out, or remove {out} to make it anew"
    old, new = ({source["name"]: source for source in plan["sources"]} for plan in (before, now))
    for name in old:
        if name not in new:
            raise InputError(f"{out} was made from {name} too, which is not among the sources now; {remedy}")
        if old[name]["size"] != new[name]["size"]:
            sizes = f"had {old[name]['size']:,} bytes when {out} was begun and has {new[name]['size']:,} now"
            raise InputError(f"{name} {sizes}; {remedy}")
        if old[name] != new[name]:
            raise InputError(f"{name} was modified since {out} was begun; {remedy}")
    for name in new:
        if name not in old:
            raise InputError(f"{out} was made without {name}; {remedy}, or add it to the complete folder with --append")
    if before["sources"] != now["sources"]:
        raise InputError(
            f"{out} was made from the same files in another order ({_names_in_order(before)}); give them in that order "
            "to continue, or another --out"
        )
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    if key == "format":
        shown = f"another format ({format_difference(before[key], now[key])})"
    else:
        absent = 1.0 if key == KEEP_NEGATIVES else None
        shown = f"{key} {before.get(key, absent)} instead of {now.get(key, absent)}"
    raise InputError(f"{out} was made with {shown}; {remedy}")


def _names_in_order(plan: Mapping[str, Any]) -> str:
    names = [Path(source["name"]).name for source in plan["sources"]]
    return ", ".join(names if len(names) < 8 else [*names[:3], "...", *names[-2:]])


def format_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    old, new = before.get(key), now.get(key)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        place = next(i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        return f"{key}: {old[place]!r} instead of {new[place]!r}, place {place + 1}"
    return f"{key}: {str(old)[:40]!r} instead of {str(new)[:40]!r}"
