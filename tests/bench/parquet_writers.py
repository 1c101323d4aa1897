"""What our Parquet writer costs beside pyarrow's, on the columns of real row groups in the same dialect."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encode import tsv
from pipeline.line_buffer import PADDING_BYTES
from pipeline.parquet import ParquetWriter
from pipeline.schema import CRITEO, ROW_GROUP_ROWS
from pipeline.shards import columns_of


class Columns(NamedTuple):
    """One row group, R rows."""

    label: np.ndarray
    """(R,) uint8"""
    dense: np.ndarray
    """(D, R) int32"""
    present: np.ndarray
    """(D, R) uint8, 0 = missing"""
    buckets: np.ndarray
    """(S, R) int32"""


class Seconds(NamedTuple):
    """CPU seconds of both writers over all row groups."""

    ours: float
    arrow: float


def row_groups(log: Path) -> Iterator[Columns]:
    """The columns that preprocessing would write for a plain Criteo log."""
    content = np.frombuffer(log.read_bytes() + bytes(PADDING_BYTES), np.uint8)
    stop = len(content) - PADDING_BYTES
    layout, scratch, rejects = tsv.make_layout(CRITEO), tsv.make_scratch(CRITEO), tsv.make_rejects()
    position = 0
    while position < stop:
        group = tsv.make_group(CRITEO, ROW_GROUP_ROWS)
        position, rows, *_ = tsv.parse(
            content, position, stop, layout, group, 0, tsv.make_tally(CRITEO), rejects, scratch
        )
        yield Columns(*(array[..., :rows] for array in group))


def write_ours(groups: list[Columns]) -> int:
    """The bytes of the file that it makes."""
    sink = io.BytesIO()
    writer = ParquetWriter(sink, columns_of(CRITEO), "lz4")
    for label_R, dense_DR, present_DR, buckets_SR in groups:
        sparse = ((buckets_R, None) for buckets_R in buckets_SR)
        writer.write_group([(label_R, None), *zip(dense_DR, present_DR, strict=True), *sparse])
    writer.finish()
    return sink.tell()


def write_arrow(groups: list[Columns]) -> int:
    """The same with pyarrow: flat columns, dictionary, lz4, page checksums, a row group a call, no statistics."""
    names = [CRITEO.label, *CRITEO.dense, *CRITEO.sparse]
    nullable = [False, *[True] * len(CRITEO.dense), *[False] * len(CRITEO.sparse)]
    types = [pa.uint8(), *[pa.int32()] * (len(names) - 1)]
    schema = pa.schema([pa.field(*field) for field in zip(names, types, nullable, strict=True)])
    sink = io.BytesIO()
    options = {"compression": "lz4", "use_dictionary": True, "write_page_checksum": True, "write_statistics": False}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for label_R, dense_DR, present_DR, buckets_SR in groups:
            dense = (pa.array(values, mask=here == 0) for values, here in zip(dense_DR, present_DR, strict=True))
            columns = [pa.array(label_R), *dense, *map(pa.array, buckets_SR)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)
    return sink.tell()


def cpu_seconds(write: Callable[[list[Columns]], int], groups: list[Columns]) -> float:
    before = time.process_time()
    write(groups)
    return time.process_time() - before


def compare_writers(groups: list[Columns]) -> Seconds:
    """One round of both."""
    return Seconds(ours=cpu_seconds(write_ours, groups), arrow=cpu_seconds(write_arrow, groups))
