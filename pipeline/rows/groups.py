"""One row group of a shard: read, checked, decompressed, decoded into column-major arrays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.buffers import BufferPool
from pipeline.errors import FetchError, ReadFailedError, StorageError
from pipeline.parquet import Chunk, Encode, fill_column, read_chunks, take_column
from pipeline.reads import ReadRetries
from pipeline.rows.choices import Moduli
from pipeline.rows.columns import logarithms, moduli_of, rows_of_table, take_rows
from pipeline.schema import LogFormat
from pipeline.shards import Compression, Shard, ShardFiles, codec_of, columns_of, read_row_group
from pipeline.stages import StageTotals

_FEW = 2
"""How many times fewer rows than a group has are looked up one by one, and not decoded with all the others."""


class GroupReader:
    """Reads row groups of `shards`, whose files are `files`; safe to use from several threads at once.

    With `table_rows` values come as the model takes them: labels and logarithms as float32, table rows in place of
    buckets (of one table, or of each sparse column's own). Each is computed once for a dictionary entry, not for every
    row.
    """

    def __init__(
        self,
        files: ShardFiles,
        shards: tuple[Shard, ...],
        log_format: LogFormat,
        *,
        compression: Compression,
        table_rows: Moduli | None = None,
        stages: StageTotals | None = None,
        retries: ReadRetries | None = None,
    ) -> None:
        self._retries, self._closing = retries or ReadRetries(0.0), threading.Event()
        self._files, self._shards = files, shards
        self._stages = stages if stages is not None else StageTotals()
        self._compression: Compression = compression
        self._encodes = _encodes(log_format, table_rows)
        self._optional = [column.optional for column in columns_of(log_format)]
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
        *,
        group_rows: int | None = None,
    ) -> None:
        """Fills label (n,) and D + S columns (n,), missing as 0, with a row group of n rows; where the format has
        weights, one more column with their bits of float32.

        With `order` (n,) the i-th row is the group's row `order[i]`, and the group may have more rows, `group_rows`; if
        it has many more the others are not decoded, but checked all the same.

        Encoded logarithms are float32, kept in the memory of their int32 columns. Raises: StorageError if the group
        cannot be read or is damaged, leaving it to the caller to name the shard; FetchError, naming the shard, if it
        is remote and cannot be fetched.
        """
        rows = len(label) if group_rows is None else group_rows
        read = partial(self._read, shard, group, rows, label, columns, order)
        try:
            read()
        except (FetchError, ReadFailedError):
            raise
        except StorageError as error:
            if not self._files.recheck(shard):
                raise
            self._retries.listen("damage", f"{self.name(shard)}: row group {group}: {error}; it is read once more")
            read()

    def close(self) -> None:
        """Ends what goes on in the background; reads under way that wait for a shard raise an error."""
        self._closing.set()
        self._files.close()

    def _read(  # noqa: PLR0917
        self,
        shard: int,
        group: int,
        rows: int,
        label: NDArray,
        columns: Sequence[NDArray[np.int32]],
        order: NDArray[np.uint32] | None,
    ) -> None:
        try:
            raw = self._buffers.take((self._shards[shard].row_group_bytes[group],), np.uint8)
            fill = partial(self._fill, raw, shard, group, rows)
            self._retries.run(self.name(shard), fill, pause=self._pause, final=(StorageError,))
        except FileNotFoundError:
            raise StorageError("it is missing") from None
        except StorageError:
            raise
        except OSError as error:
            raise ReadFailedError(error.strerror or str(error)) from error
        with self._stages.timed("decompress", rows):
            codec = codec_of(self._compression)
            chunks = read_chunks(raw, rows=rows, columns=len(self._encodes), codec=codec)
        start, shuffling = time.perf_counter(), 0.0
        # Four bytes a row hold any column; the same ones every time stay in cache.
        memory = None if order is None else self._buffers.take((rows,), np.int32)
        for c, out in enumerate((label, *columns)):
            if order is not None and _FEW * len(order) <= rows and self._take(chunks[c], c, order, out):
                continue
            column = out if memory is None else memory.view(out.dtype)[:rows]
            fill_column(chunks[c], self._encodes[c], column, optional=self._optional[c])
            if order is not None:
                began = time.perf_counter()
                take_rows(column, order, out)
                shuffling += time.perf_counter() - began
        self._stages.add("decode", time.perf_counter() - start - shuffling, rows)
        if order is not None:
            self._stages.add("shuffle", shuffling, 0)  # whoever mixes the groups counts the rows

    def _take(self, chunk: Chunk, column: int, order: NDArray[np.uint32], out: NDArray) -> bool:
        return take_column(chunk, self._encodes[column], order, out, optional=self._optional[column])

    def _fill(self, raw: NDArray[np.uint8], shard: int, group: int, rows: int) -> None:
        with self._files.open(shard, group, rows) as file, self._stages.timed("source_read", rows):
            read_row_group(file, self._shards[shard], group, raw)

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise CancelledError


def _encodes(log_format: LogFormat, table_rows: Moduli | None) -> list[Encode | None]:
    """What to do with the values of label, dense and sparse columns, and of the weights."""
    weight: list[Encode | None] = [None] * bool(log_format.weight)
    if table_rows is None:
        return [None] * (1 + len(log_format.dense) + len(log_format.sparse) + len(weight))
    rows = [partial(rows_of_table, table_rows=each) for each in moduli_of(table_rows, len(log_format.sparse))]
    return [None, *[_logarithm_bits] * len(log_format.dense), *rows, *weight]


def _logarithm_bits(values: NDArray[np.int32]) -> NDArray[np.int32]:
    return logarithms(values).view(np.int32)
