"""One shard at a time, row group by row group, under a temporary name until it is whole and durable."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from isal import isal_zlib

from pipeline.parquet import Compression, ParquetColumn, ParquetWriter
from pipeline.schema import LogFormat
from pipeline.shards.durable import sync_descriptor, sync_folder
from pipeline.shards.manifest import Shard


def columns_of(log_format: LogFormat) -> tuple[ParquetColumn, ...]:
    """Columns of a shard: label uint8, dense int32 nullable, sparse int32, and a weight float32 where there is one."""
    return (
        ParquetColumn(name=log_format.label, unsigned_byte=True),
        *(ParquetColumn(name=name, optional=True) for name in log_format.dense),
        *(ParquetColumn(name=name) for name in log_format.sparse),
        *(ParquetColumn(name=name, floating=True) for name in filter(None, [log_format.weight])),
    )


class ShardWriter:
    """Writes one shard under a temporary name; `finish` makes it durable and gives it its own.

    A context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, path: Path, log_format: LogFormat, compression: Compression) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._row_groups: list[int] = []
        self._row_group_bytes: list[int] = []
        self._row_group_crc32: list[int] = []
        self._sink = _HashingFile(self._temporary)
        self._writer = ParquetWriter(self._sink, columns_of(log_format), compression)

    def write_group(
        self,
        label_R: np.ndarray,
        dense_DR: np.ndarray,
        present_DR: np.ndarray,
        buckets_SR: np.ndarray,
        weight_R: np.ndarray | None = None,
    ) -> None:
        """Append one row group of up to 65,536 rows: label uint8, dense int32, present uint8 (0 = missing), buckets
        int32, weight float32 (None of a format without)."""
        start, self._sink.crc32 = self._sink.written, 0
        sparse = ((buckets_R, None) for buckets_R in buckets_SR)
        weight = [] if weight_R is None else [(weight_R.view(np.int32), None)]
        self._writer.write_group([(label_R, None), *zip(dense_DR, present_DR, strict=True), *sparse, *weight])
        self._row_groups.append(len(label_R))
        self._row_group_bytes.append(self._sink.written - start)
        self._row_group_crc32.append(self._sink.crc32)

    def finish(self, listed_as: str) -> Shard:
        """Make the shard durable under its own name; `listed_as` becomes its path in the manifest."""
        self._writer.finish()
        self._sink.sync_and_close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)
        return Shard(
            path=listed_as,
            rows=sum(self._row_groups),
            bytes=self._sink.written,
            sha256=self._sink.hash.hexdigest(),
            row_groups=tuple(self._row_groups),
            row_group_bytes=tuple(self._row_group_bytes),
            row_group_crc32=tuple(self._row_group_crc32),
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Remove what was written, unless it is finished."""
        if not self._sink.closed:
            try:
                self._sink.close()
            finally:
                self._temporary.unlink(missing_ok=True)


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.hash = hashlib.sha256()
        self.crc32 = 0
        """Of what was written since it was last set to 0."""
        self.written = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.hash.update(data)
        self.crc32 = isal_zlib.crc32(data, self.crc32)
        self.written += len(data)

    def sync_and_close(self) -> None:
        self._file.flush()
        sync_descriptor(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        self._file.close()
