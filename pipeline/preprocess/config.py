"""What is to be preprocessed and how; importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.schema import Compression

Engine = Literal["threads", "ray"]
LEAST_KEPT = 1e-6
"""The smallest share of the rows of label 0 that may be kept; [loss] takes none below it."""
SplitRule = Literal["auto", "days", "tail", "train", "validation", "test"]


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
            raise InputError(f"--max-rejects {text!r} is neither a count nor a share; give e.g. 100, 0.1% or 0.001")
        return cls(count=None, share=share, text=text)

    def exceeded(self, rejected: int, lines: float) -> bool:
        """Whether `rejected` of `lines` are too many."""
        if self.count is not None:
            return rejected > self.count
        return rejected > (self.share or 0.0) * lines


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Turn log files into a data folder of Parquet shards; run again to continue after an interruption."""

    sources: tuple[str, ...]
    """Log files, folders, patterns or URIs (s3://, gs://, hdfs://), in the order of time; those of a folder or pattern
    are put in natural order. Plain, gzip, zstd, bzip2 or xz; - reads standard input."""
    out: Path
    """The data folder to make or to continue; with --append it may be a URI (s3://, gs://, hdfs://)."""
    format: str = "criteo"
    """The log's format: criteo (the 1TB log, with AlgoPerf's bucket sizes), criteo-kaggle, avazu, or a TOML file that
    describes another."""
    bucket_sizes: str | None = None
    """Buckets of the categories instead of the format's: one number for every column (1000000), one each (10,20,30), or
    those of some columns by name (C3=10,C7=20)."""
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
    keep_negatives: float = 1.0
    """Share of the training rows of label 0 to keep, above 0 and up to 1, drawn by their place in the log; validation
    and test keep all. Training corrects its answers by it (loss.negatives_kept)."""
    append: bool = False
    """Add the sources to a data folder as its next generation, encoded like the rest of it; those that it has already
    are left out. All rows train unless --split says otherwise. A folder that is not there is made."""
    engine: Engine = "threads"
    """threads: on this machine; ray: as tasks on a Ray cluster (extra `ray`; RAY_ADDRESS names one). Same output."""

    named: frozenset[str] = frozenset()
    """Options that were given although they are what they are by default: `append` refuses those that the folder was
    made without."""

    def __post_init__(self) -> None:
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):  # nan is refused too
            raise InputError(
                f"--validation {self.validation} and --test {self.test} must be 0 or more and sum to less than 1"
            )
        if self.rows_per_shard < 1:
            raise InputError(f"--rows-per-shard {self.rows_per_shard} must be at least 1")
        if not LEAST_KEPT <= self.keep_negatives <= 1:  # nan is refused too
            raise InputError(
                f"--keep-negatives {self.keep_negatives} must be a share of the rows of label 0, from {LEAST_KEPT:f} "
                "to 1"
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers} must be at least 1")
        Allowance.parse(self.max_rejects)
