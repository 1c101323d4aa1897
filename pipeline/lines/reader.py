"""Lines of a log, with or without labels, as batches of encoded rows that know which line each of them came from."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encode import Counts, make_group, make_layout, make_rejects, make_scratch, parse, rejected_lines
from pipeline.lines.labels import format_in
from pipeline.rows import Moduli, RowBatch, encoded_columns
from pipeline.schema import LogFormat
from pipeline.source import Block, LineReader, Source, after_newlines, check_header

MOST_EXAMPLES = 5
"""Rejected lines of a batch whose reasons are told."""


class RejectsSink(Protocol):
    """Takes rejected lines, in the form of DATA/rejects."""

    def write(self, data: bytes, /) -> object: ...


class RejectedLine(NamedTuple):
    """A line that holds no row."""

    source: str
    number: int
    """In its source, from 1."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class LineBatch:
    """Consecutive lines: up to and with the last row of the batch; without a row, so many as a batch has rows; of the
    last batch, to the end."""

    rows: RowBatch
    """In order; may hold none. Labels are 0 if the lines have none."""
    lines: int
    labelled: bool
    """Whether the lines have labels."""
    rejected: NDArray[np.int64]
    """The places of the lines that hold no row among the batch's, from 0, ascending."""
    examples: tuple[RejectedLine, ...]
    """The first MOST_EXAMPLES of them."""
    rejects_bytes: int
    """What was written of them to the reader's `rejects`."""

    def places(self) -> NDArray[np.int64]:
        """(R,) the place of every row among the batch's lines, from 0."""
        return np.delete(np.arange(self.lines), self.rejected)


def read_lines(
    sources: Sequence[Source],
    log_format: LogFormat,
    *,
    batch_rows: int,
    table_rows: Moduli | None,
    labelled: bool | None = None,
    skip_lines: int = 0,
    rejects: RejectsSink | None = None,
) -> Iterator[LineBatch]:
    """The lines of `sources`, one after the other, in batches of `batch_rows` rows, from line `skip_lines` on.

    A line that is not a row takes its place among the lines and none in a batch, so that rows come in the same batches
    as from a data folder made of the same lines. With `table_rows` they are encoded as `pipeline.rows.RowReader` does.
    `labelled`: whether lines have the label column; None: told from the first lines, or from the header. Lines without
    it may lack the weight column of their format too, which is not looked at in them. `rejects` is written to from line
    `skip_lines` on, before the batch of a line is handed out.
    Raises: InputError for a source that cannot be read, is empty or has another header, or first lines that do not tell
    which columns they have; what `rejects` raises.
    """
    batch = None
    for source in sources:
        with LineReader(source, replace(log_format, header=False)) as reader:
            number = 1
            for index, block in enumerate(reader):
                position = block.start
                if batch is None:
                    lines_format = format_in(block, sources, log_format, labelled)
                    batch = _Filling(lines_format, batch_rows, table_rows, rejects)
                if index == 0 and log_format.header:
                    position = _after_header(block, source, batch.log_format)
                    number += 1
                position, skipped = after_newlines(block.buffer, position, block.stop, skip_lines)
                skip_lines -= skipped
                number += skipped
                while position < block.stop:
                    position, taken = batch.add(block, position, source=source, number=number)
                    number += taken
                    if batch.full:
                        yield batch.take()
    if batch is not None and batch.lines:
        yield batch.take()


class _Filling:
    """The batch that is being filled."""

    def __init__(
        self, log_format: LogFormat, batch_rows: int, table_rows: Moduli | None, sink: RejectsSink | None
    ) -> None:
        self.log_format, self._batch_rows, self._table_rows, self._sink = log_format, batch_rows, table_rows, sink
        self._layout, self._scratch, self._rejects = make_layout(log_format), make_scratch(log_format), make_rejects()
        self._group, self._tally = make_group(log_format, batch_rows), Counts(log_format).tally
        self._group.label[:] = 0
        self._filled = self.lines = self._rejects_bytes = 0
        self._rejected = array("q")
        self._examples: list[RejectedLine] = []

    @property
    def full(self) -> bool:
        """Whether it has its rows, or so many lines without one that nothing else bounds it."""
        return self._filled == self._batch_rows or (not self._filled and self.lines >= self._batch_rows)

    def add(self, block: Block, position: int, *, source: Source, number: int) -> tuple[int, int]:
        """Takes lines of the block from `position`, that of line `number`; the position behind them and how many."""
        position, self._filled, taken, count = parse(
            block.buffer,
            position,
            block.stop,
            self._layout,
            self._group,
            self._filled,
            self._tally,
            self._rejects,
            self._scratch,
        )
        self._rejected.extend(self.lines + int(index) for index in self._rejects.lines[:count])
        told = count if self._sink else min(count, MOST_EXAMPLES - len(self._examples))
        for each in rejected_lines(self.log_format, block.buffer, self._rejects, told):
            if len(self._examples) < MOST_EXAMPLES:
                self._examples.append(RejectedLine(source.named, number + each.index, each.reason))
            if self._sink:
                row = each.as_row(source.address, number + each.index)
                self._sink.write(row)
                self._rejects_bytes += len(row)
        self.lines += taken
        return position, taken

    def take(self) -> LineBatch:
        """The batch, which shares no memory with the next."""
        rows, group = self._filled, self._group
        label, dense, buckets = group.label[:rows], group.dense[:, :rows], group.buckets[:, :rows]
        if self._table_rows is None:
            label, dense, buckets = label.copy(), dense.copy(), buckets.copy()
        else:
            label, dense, buckets = encoded_columns(label, dense, buckets, table_rows=self._table_rows)
        weight = group.weight[:rows].copy() if self.log_format.weight else None
        batch = LineBatch(
            rows=RowBatch(label=label, dense=dense, buckets=buckets, weight=weight, epoch=0, start=0),
            lines=self.lines,
            labelled=bool(self.log_format.label),
            rejected=np.array(self._rejected, np.int64),
            examples=tuple(self._examples),
            rejects_bytes=self._rejects_bytes,
        )
        self._filled = self.lines = self._rejects_bytes = 0
        self._rejected, self._examples = array("q"), []
        return batch


def _after_header(block: Block, source: Source, log_format: LogFormat) -> int:
    stop, _ = after_newlines(block.buffer, block.start, block.stop, 1)
    check_header(source, log_format, block.buffer[block.start : stop].tobytes())
    return stop
