"""One row group of a shard: read, checked, decompressed, decoded into column-major arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from functools import partial
from io import FileIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import FetchError, StorageError
from pipeline.parquet import Encode, fill_column, read_chunks
from pipeline.rows.buffers import BufferPool
from pipeline.rows.columns import logarithms, rows_of_table, take_rows
from pipeline.schema import LogFormat
from pipeline.shards import Compression, Shard, ShardFiles
from pipeline.stages import StageTotals

_MAGIC_BYTES = 4


class GroupReader:
    """Reads row groups of `shards`, whose files are `files`; safe to use from several threads at once.

    With `table_rows` values come as the model takes them: labels and logarithms as float32, table rows in place of
    buckets. Each is computed once for a dictionary entry, not for every row.
    """

    def __init__(
        self,
        files: ShardFiles,
        shards: tuple[Shard, ...],
        log_format: LogFormat,
        *,
        compression: Compression,
        table_rows: int | None,
        stages: StageTotals,
    ) -> None:
        self._files, self._shards, self._format, self._stages = files, shards, log_format, stages
        self._codec = {"lz4": "lz4_raw", "zstd": "zstd", "none": None}[compression]
        self._encodes = _encodes(log_format, table_rows)
        self._optional = [False, *[True] * len(log_format.dense), *[False] * len(log_format.sparse)]
        self._buffers = BufferPool(spare=8)

    def name(self, shard: int) -> str:
        """Where a shard lies."""
        return self._files.name(shard)

    def expect(self, shards: Sequence[int], later: Iterable[int]) -> None:
        """Takes note that row groups of `shards` are read next, in this order, and then those of `later`."""
        self._files.expect(shards, later)

    def read(
        self,
        shard: int,
        group: int,
        label: NDArray,
        columns: Sequence[NDArray[np.int32]],
        order: NDArray[np.uint32] | None = None,
    ) -> None:
        """Fills label (n,) and D + S columns (n,), missing as 0, with a row group of n rows.

        With `order` (n,) the i-th row is the group's row `order[i]`.

        Encoded logarithms are float32 in the memory of their columns. Raises: StorageError where the group cannot be
        read or is damaged, leaving it to the caller to name the shard; FetchError, naming it, where it lies elsewhere
        and cannot be fetched.
        """
        try:
            self._read(shard, group, label, columns, order)
        except FetchError:
            raise
        except StorageError:
            if not self._files.recheck(shard):
                raise
            self._read(shard, group, label, columns, order)

    def close(self) -> None:
        """Ends what goes on in the background; reads under way that wait for a shard raise an error."""
        self._files.close()

    def _read(
        self,
        shard: int,
        group: int,
        label: NDArray,
        columns: Sequence[NDArray[np.int32]],
        order: NDArray[np.uint32] | None,
    ) -> None:
        rows = len(label)
        try:
            with self._files.open(shard, rows) as file, self._stages.timed("source_read", rows):
                raw = self._read_bytes(file, self._shards[shard], group)
        except FileNotFoundError:
            raise StorageError("it is missing") from None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(error.strerror or str(error)) from error
        # A codec is not safe to share between threads.
        codec = pa.Codec(self._codec) if self._codec else None
        with self._stages.timed("decompress", rows):
            chunks = read_chunks(raw, rows=rows, columns=len(self._encodes), codec=codec)
        start, shuffling = time.perf_counter(), 0.0
        # Four bytes a row hold any column; the same ones every time stay in cache.
        memory = None if order is None else self._buffers.take((rows,), np.int32)
        for c, out in enumerate((label, *columns)):
            column = out if memory is None else memory.view(out.dtype)[:rows]
            fill_column(chunks[c], self._encodes[c], column, optional=self._optional[c])
            if order is not None:
                began = time.perf_counter()
                take_rows(column, order, out)
                shuffling += time.perf_counter() - began
        self._stages.add("decode", time.perf_counter() - start - shuffling, rows)
        if order is not None:
            self._stages.add("shuffle", shuffling, 0)  # whoever mixes the groups counts the rows

    def _read_bytes(self, file: FileIO, listed: Shard, group: int) -> NDArray[np.uint8]:
        """The bytes of a row group."""
        size = os.fstat(file.fileno()).st_size
        if size != listed.bytes:
            raise StorageError(f"it has {size} bytes where the manifest says {listed.bytes}")
        offset = _MAGIC_BYTES + sum(listed.row_group_bytes[:group])
        raw = self._buffers.take((listed.row_group_bytes[group],), np.uint8)
        done = 0
        while done < len(raw):
            count = os.preadv(file.fileno(), [raw[done:].data], offset + done)
            if count == 0:
                raise StorageError("it became shorter while it was read")
            done += count
        return raw


def _encodes(log_format: LogFormat, table_rows: int | None) -> list[Encode | None]:
    """What to do with the values of label, dense and sparse columns."""
    if table_rows is None:
        return [None] * (1 + len(log_format.dense) + len(log_format.sparse))
    rows = partial(rows_of_table, table_rows=table_rows)
    return [None, *[_logarithm_bits] * len(log_format.dense), *[rows] * len(log_format.sparse)]


def _logarithm_bits(values: NDArray[np.int32]) -> NDArray[np.int32]:
    return logarithms(values).view(np.int32)
