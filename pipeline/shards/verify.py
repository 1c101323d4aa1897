"""A data folder re-hashed: what is whole, what is damaged, and what can still be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from pipeline.errors import FetchError
from pipeline.parquet import fill_column, read_chunks
from pipeline.shards.manifest import DistinctFile, Manifest, RejectsFile, Shard
from pipeline.shards.remote import RemoteFolder
from pipeline.shards.row_groups import codec_of, read_row_group
from pipeline.shards.writer import columns_of
from pipeline.stages import usable_cores


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What re-hashing one shard found."""

    shard: Shard
    whole: bool
    problem: str
    """Empty if it is whole."""
    readable_rows: int
    """Rows that training still reads with data.damaged = "skip"."""


def verify_shard(manifest: Manifest, shard: Shard) -> ShardReport:
    """Re-hash a shard; if it is damaged, count the rows that can still be read.

    A remote shard is streamed, not stored. Raises: FetchError if it cannot be fetched.
    """
    problem = _problem(manifest.folder, shard)
    readable_rows = _readable_rows(manifest, shard) if problem else shard.rows
    return ShardReport(shard=shard, whole=not problem, problem=problem, readable_rows=readable_rows)


def _problem(folder: Path | RemoteFolder, shard: Shard) -> str:
    """What is wrong with a shard, or an empty text. Raises: FetchError."""
    try:
        found, size = _digest(folder, shard.path)
    except FileNotFoundError:
        return "is missing"
    except FetchError:
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != shard.bytes:
        return f"has {size} bytes instead of {shard.bytes}"
    return "" if found == shard.sha256 else "differs from what was written"


def _digest(folder: Path | RemoteFolder, name: str) -> tuple[str, int]:
    """SHA-256 and bytes of a file."""
    if isinstance(folder, Path):
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

    def stream() -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        for chunk in folder.chunks(name):
            digest.update(chunk)
            size += chunk.size
        return digest.hexdigest(), size

    return folder.retried(name, stream)


def _readable_rows(manifest: Manifest, shard: Shard) -> int:
    """Rows in row groups that decode; none of a remote shard, which a reader takes whole or not at all."""
    if not isinstance(manifest.folder, Path):
        return 0
    rows = 0
    with suppress(OSError), (manifest.folder / shard.path).open("rb", buffering=0) as file:
        for group, expected in enumerate(shard.row_groups):
            with suppress(OSError):  # StorageError is one
                _decode(file, manifest, shard, group)
                rows += expected
    return rows


def _decode(file: FileIO, manifest: Manifest, shard: Shard, group: int) -> None:
    """Raises: OSError for a row group that a reader would refuse."""
    raw = np.empty(shard.row_group_bytes[group], np.uint8)
    read_row_group(file, shard, group, raw)
    rows, columns = shard.row_groups[group], columns_of(manifest.format)
    chunks = read_chunks(raw, rows=rows, columns=len(columns), codec=codec_of(manifest.compression))
    for chunk, column in zip(chunks, columns, strict=True):
        fill_column(chunk, None, np.empty(rows, np.int32), optional=column.optional)


@dataclass(frozen=True, kw_only=True)
class VerifyProgress:
    """How much of a data folder was re-hashed."""

    shards: int
    total_shards: int
    bytes: int
    total_bytes: int
    damaged: int


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What re-hashing a data folder found."""

    shards: tuple[ShardReport, ...]
    """Of every shard, in row order, split after split."""
    damaged_asides: tuple[str, ...]
    """Files of rejected lines or of counts (see DistinctFile) that are missing or differ; no training row depends on
    them."""
    unlisted: tuple[str, ...]
    """Files in the split folders that the manifest does not list; nothing reads them."""

    @property
    def whole(self) -> bool:
        return not self.damaged and not self.damaged_asides

    @property
    def damaged(self) -> tuple[ShardReport, ...]:
        return tuple(report for report in self.shards if not report.whole)

    @property
    def rows(self) -> int:
        return sum(report.shard.rows for report in self.shards)

    @property
    def readable_rows(self) -> int:
        """Rows that training still reads with data.damaged = "skip"."""
        return sum(report.readable_rows for report in self.shards)

    def lines(self) -> list[str]:
        """One sentence for each thing found, as a person wants to read it."""
        found = [
            f"{each.shard.path} {each.problem}; {each.readable_rows:,} of its {each.shard.rows:,} rows can be read"
            for each in self.damaged
        ]
        found += [f"{path} is missing or differs; no training row depends on it" for path in self.damaged_asides]
        found += [f"{path} is not listed in the manifest; nothing reads it" for path in self.unlisted]
        return found


def verify_data(data: str | Path, *, report: Callable[[VerifyProgress], None] | None = None) -> DataReport:
    """Re-hash all shards and what lies beside them in a data folder, on all cores; `report` is called after each shard.

    Raises: InputError if `data` is not a finished data folder; StorageError if its manifest is damaged; FetchError if
    it is remote and cannot be fetched.
    """
    manifest = Manifest.load(data)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    total_bytes = sum(shard.bytes for shard in shards)
    reports: dict[str, ShardReport] = {}
    done_bytes = 0
    pool = ThreadPoolExecutor(usable_cores())
    try:
        waiting = [pool.submit(verify_shard, manifest, shard) for shard in shards]
        for future in as_completed(waiting):
            found = future.result()
            reports[found.shard.path] = found
            done_bytes += found.shard.bytes
            if report:
                progress = VerifyProgress(
                    shards=len(reports),
                    total_shards=len(shards),
                    bytes=done_bytes,
                    total_bytes=total_bytes,
                    damaged=sum(not each.whole for each in reports.values()),
                )
                report(progress)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error, what waits would only delay it
    return DataReport(
        shards=tuple(reports[shard.path] for shard in shards),
        damaged_asides=_damaged_asides(manifest, data),
        unlisted=_unlisted(manifest),
    )


def _damaged_asides(manifest: Manifest, data: str | Path) -> tuple[str, ...]:
    damaged = [rejects.path for rejects in manifest.rejects if not _is_whole(manifest.folder, rejects)]
    # The counts are replaced by those of each generation that is added, and one may have been added meanwhile.
    counts = Manifest.load(data).distinct
    if counts is not None and not _is_whole(manifest.folder, counts):
        damaged.append(counts.path)
    return tuple(damaged)


def _is_whole(folder: Path | RemoteFolder, aside: RejectsFile | DistinctFile) -> bool:
    try:
        return _digest(folder, aside.path)[0] == aside.sha256
    except FetchError:
        raise
    except OSError:
        return False


def _unlisted(manifest: Manifest) -> tuple[str, ...]:
    listed = {shard.path for split in manifest.splits.values() for shard in split.shards}
    folder = manifest.folder
    names: list[str] = []
    for split in manifest.splits:
        if isinstance(folder, Path):
            names += [path.relative_to(folder).as_posix() for path in (folder / split).glob("*")]
        else:
            names += folder.names(split)
    return tuple(sorted(name for name in names if name not in listed))
