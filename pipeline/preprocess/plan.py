"""What is to be preprocessed and how: the options, the sources they name, and which lines go to which split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.preprocess.formats import find_format
from pipeline.preprocess.parts import Segment, day_segments, tail_segments
from pipeline.schema import LogFormat
from pipeline.shards import Compression
from pipeline.source import Source, count_lines, find_sources

Engine = Literal["threads", "ray"]
SplitRule = Literal["auto", "days", "tail", "train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Turn log files into a data folder of Parquet shards; run again to continue after an interruption."""

    sources: tuple[str, ...]
    """Log files, folders, patterns or URIs (s3://, gs://, hdfs://); plain, .gz or .zst; - reads standard input."""
    out: Path
    """The data folder to make or to continue."""
    format: str = "criteo"
    """The log's format: criteo, or a TOML file that describes another."""
    split: SplitRule = "auto"
    """days: the last file becomes test, then validation, as AlgoPerf does; tail: the end of a single file does;
    train, validation or test: everything goes there; auto: days for several files, tail for one, train for -."""
    validation: float = 0.1
    """Share of a single file's lines that become the validation split, before the test split."""
    test: float = 0.1
    """Share of a single file's lines, at its end, that become the test split."""
    rows_per_shard: int = 262_144
    """Log lines that make one shard."""
    compression: Compression = "lz4"
    """How shards are compressed: lz4 (fast), zstd (a third smaller) or none."""
    max_rejects: str = "0.1%"
    """Stop when more lines than this are unusable: a count (100) or a share (0.1% or 0.001)."""
    workers: int | None = None
    """Worker threads; every core unless given."""
    engine: Engine = "threads"
    """threads: on this machine; ray: as tasks on a Ray cluster (extra `ray`; RAY_ADDRESS names one). Same output."""

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise InputError(
                f"--validation {self.validation} and --test {self.test} must be 0 or more and sum to less than 1"
            )
        if self.rows_per_shard < 1:
            raise InputError(f"--rows-per-shard {self.rows_per_shard} must be at least 1")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers} must be at least 1")
        Allowance.parse(self.max_rejects)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How many lines may be unusable."""

    count: int | None
    share: float | None
    text: str

    @classmethod
    def parse(cls, text: str) -> Allowance:
        """From a count (`100`) or a share (`0.1%`, `0.001`). Raises: InputError for anything else."""
        try:
            if text.endswith("%"):
                share = float(text[:-1]) / 100
            elif text.isdecimal():
                return cls(count=int(text), share=None, text=text)
            else:
                share = float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"--max-rejects {text!r} is no count and no share; give e.g. 100, 0.1% or 0.001")
        return cls(count=None, share=share, text=text)

    def exceeded(self, rejected: int, lines: float) -> bool:
        """Whether `rejected` of `lines` are too many."""
        if self.count is not None:
            return rejected > self.count
        return rejected > (self.share or 0.0) * lines


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

    @classmethod
    def make(cls, config: PreprocessConfig) -> Plan:
        """The plan that the options stand for now.

        Raises: InputError for sources or a format that cannot be used, or a split rule that the sources do not allow.
        """
        sources = find_sources(config.sources)
        return cls(
            sources=sources,
            log_format=find_format(config.format),
            split=_split_rule(config.split, sources),
            validation=config.validation,
            test=config.test,
            rows_per_shard=config.rows_per_shard,
            compression=config.compression,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values, to be compared with that of another run."""
        values: dict[str, Any] = {
            "sources": [{**asdict(source), "name": source.address} for source in self.sources],
            "format": self.log_format.to_dict(),
            "split": self.split,
            "rows_per_shard": self.rows_per_shard,
            "compression": self.compression,
        }
        values |= {"validation": self.validation, "test": self.test} if self.split == "tail" else {}
        return json.loads(json.dumps(values))

    def segments(self, index: int, counted: Callable[[int], None]) -> tuple[Segment, ...]:
        """Which lines of source `index` belong to which split; counts its lines where that depends on them.

        `counted` gets the stored bytes read so far.
        """
        return self.segments_of(index, lambda: count_lines(self.sources[index], self.log_format, counted))

    def segments_of(self, index: int, lines: Callable[[], int]) -> tuple[Segment, ...]:
        """Which of the source's `lines` lines belong to which split; `lines` is called where that depends on them."""
        if self.split == "days":
            return day_segments(last=index == len(self.sources) - 1, lines=lines)
        if self.split == "tail":
            return tail_segments(lines(), self.validation, self.test)
        return (Segment(split=self.split, first_line=0, stop_line=None),)


def _split_rule(split: SplitRule, sources: tuple[Source, ...]) -> str:
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
            raise InputError(f"{out} was made without {name}; {remedy}")
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    shown = "another format" if key == "format" else f"{key} {before.get(key)} instead of {now.get(key)}"
    raise InputError(f"{out} was made with {shown}; {remedy}")
