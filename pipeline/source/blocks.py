"""The bytes of sources as blocks of whole lines: read in order, found by line number, cut where a part ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from pipeline.errors import InputError, StorageError
from pipeline.line_buffer import MAX_LINE_BYTES, PADDING_BYTES
from pipeline.schema import LogFormat
from pipeline.source.kinds import UTF8_BOM
from pipeline.source.newlines import after_last_newline, after_newlines, count_newlines
from pipeline.source.source import Source
from pipeline.source.stream import SourceStream

BLOCK_BYTES = MAX_LINE_BYTES


class Block(NamedTuple):
    """Whole lines: `buffer[start:stop]`, the last byte a line end, padding behind it."""

    buffer: np.ndarray
    start: int
    stop: int


class LineReader:
    """Blocks of whole lines from one source, in order, with the header checked and taken off.

    Each block lies in memory that `memory` gave for it. Without `memory` they share one: a block is then valid until
    the next one is asked for.
    """

    def __init__(
        self, source: Source, log_format: LogFormat, *, memory: Callable[[], np.ndarray] | None = None
    ) -> None:
        self._source = source
        self._stream: SourceStream = source.open()
        shared = new_memory()
        self.memory = memory or (lambda: shared)
        self._carry = shared[:0]
        self._ended = False
        self._header = log_format if log_format.header else None

    @property
    def stored_bytes(self) -> int:
        return self._stream.stored_bytes

    def __iter__(self) -> Iterator[Block]:
        while (block := self._next_block()) is not None:
            if self._header:
                block = self._without_header(block, self._header)
                self._header = None
            if block.stop > block.start:
                yield block

    def _next_block(self) -> Block | None:
        if self._ended:
            return None
        memory = self.memory()
        carried = len(self._carry)
        memory[:carried] = self._carry
        filled = carried + self._stream.fill(memory[carried : carried + BLOCK_BYTES].data)
        if filled < carried + BLOCK_BYTES:
            self._ended = True
            return Block(memory, 0, _ended_line(memory, filled)) if filled else None
        stop = int(after_last_newline(memory, carried, filled))
        if stop == carried:
            raise _no_line_end(self._source)
        self._carry = memory[stop:filled].copy()
        return Block(memory, 0, stop)

    def _without_header(self, block: Block, log_format: LogFormat) -> Block:
        stop, _ = after_newlines(block.buffer, block.start, block.stop, 1)
        check_header(self._source, log_format, block.buffer[block.start : stop].tobytes())
        return Block(block.buffer, stop, block.stop)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_header(source: Source, log_format: LogFormat, line: bytes) -> None:
    """Raises: InputError if the first line of `source` does not name the columns of the format."""
    names = tuple(line.decode("utf-8", "replace").rstrip("\r\n").split(log_format.delimiter))
    if names != log_format.columns:
        wrong = next(
            (i for i, pair in enumerate(zip(names, log_format.columns, strict=False)) if pair[0] != pair[1]), None
        )
        detail = (
            f"has {len(names)} columns instead of {len(log_format.columns)}"
            if wrong is None
            else f"names {_quoted(names[wrong])} where format {log_format.name!r} has {log_format.columns[wrong]!r}"
        )
        raise InputError(f"{source.address}: its header {detail}; correct the format or the file")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _no_line_end(source: Source) -> InputError:
    return InputError(f"{source.address} has no line end within {BLOCK_BYTES:,} bytes; is it a log of delimited lines?")


def _ended_line(memory: np.ndarray, filled: int) -> int:
    """Where the last line ends, after giving it a line end should it have none."""
    if memory[filled - 1] == 10:
        return filled
    memory[filled] = 10
    return filled + 1


def new_memory() -> np.ndarray:
    """Room for a block, for what was carried over from the one before, and for padding; untouched until it is used."""
    return np.empty(2 * BLOCK_BYTES + PADDING_BYTES, np.uint8)


def lines_in(block: Block) -> int:
    """How many lines a block holds."""
    return int(count_newlines(block.buffer, block.start, block.stop))


def count_lines(source: Source, log_format: LogFormat, progress: Callable[[int], None]) -> int:
    """How many lines `source` has, its header not counted; `progress` gets the stored bytes read so far."""
    lines = 0
    with LineReader(source, log_format) as reader:
        for block in reader:
            lines += lines_in(block)
            progress(reader.stored_bytes)
    return lines


class ByteRange(NamedTuple):
    """Where the lines of a part lie in a plain local file."""

    start: int
    stop: int
    lines: int


class RangeFinder:
    """Walks a plain local file once, telling where each part begins and ends."""

    def __init__(self, source: Source, log_format: LogFormat) -> None:
        self._source = source
        self._file = Path(source.name).open("rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._memory = np.empty(4 * BLOCK_BYTES, np.uint8)
        self._offset = 0
        """File position of the next line."""
        self._held = (0, 0)
        """Start and stop of the bytes at `_offset` that are in memory."""
        if self._file.read(len(UTF8_BOM)) == UTF8_BOM:
            self.skip_to(len(UTF8_BOM))
        else:
            self._file.seek(0)
        if log_format.header:
            header = self.next_range(1)
            check_header(source, log_format, self._memory[: header.stop - header.start].tobytes())

    def next_range(self, lines: int) -> ByteRange:
        """The next `lines` lines, or as many as there are."""
        start, found = self._offset, 0
        unfinished = False
        while found < lines:
            first, stop = self._held
            if first == stop:
                count = self._file.readinto(self._memory.data)
                if not count:
                    break
                first, stop = 0, count
            here = int(count_newlines(self._memory, first, stop))
            if found + here < lines:
                found += here
                unfinished = self._memory[stop - 1] != 10
                position = stop
            else:
                position, more = after_newlines(self._memory, first, stop, lines - found)
                found += int(more)
                unfinished = False
            self._offset += int(position) - first
            self._held = (int(position), stop)
        return ByteRange(start, self._offset, found + unfinished)

    def skip_to(self, offset: int) -> None:
        """Go on at a known beginning of a line."""
        self._offset = offset
        self._held = (0, 0)
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RangeFinder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def range_blocks(source: Source, lines: ByteRange, memory: np.ndarray) -> Iterator[Block]:
    """Blocks of the whole lines in a byte range, all in `memory` (see new_memory).

    Raises: StorageError if the file is shorter than it was; InputError for a line longer than a block.
    """
    left = lines.stop - lines.start
    carried = 0
    with Path(source.name).open("rb", buffering=0) as file:
        file.seek(lines.start)
        while left:
            wanted = min(left, BLOCK_BYTES)
            count = file.readinto(memory[carried : carried + wanted].data)
            if not count:
                raise StorageError(f"{source.address} became shorter while it was read; preprocess it anew")
            left -= count
            filled = carried + count
            if left == 0:
                yield Block(memory, 0, _ended_line(memory, filled))
                return
            stop = int(after_last_newline(memory, carried, filled))
            if stop == carried:
                if filled > BLOCK_BYTES:
                    raise _no_line_end(source)
                carried = filled
                continue
            yield Block(memory, 0, stop)
            carried = filled - stop
            memory[:carried] = memory[stop:filled]


class Pieces:
    """The blocks of a stream, cut where one part ends and the next begins."""

    def __init__(self, reader: LineReader, *, checked: bool) -> None:
        self._reader = reader
        self._blocks = iter(reader)
        self._rest = next(self._blocks, None)
        self._accounted_bytes = 0
        self._checked = checked
        self.checksum: int | None = None
        """CRC-32 of the lines that `take` gave last, if they are to be checked."""

    @property
    def ended(self) -> bool:
        return self._rest is None

    def take(self, lines: int) -> Iterator[tuple[Block, int]]:
        """Blocks of the next `lines` lines, or as many as there are, each with the stored bytes read for it."""
        self.checksum = 0 if self._checked else None
        while lines and self._rest is not None:
            block, found = self._rest, lines_in(self._rest)
            if found > lines:
                block, self._rest = self._split(block, lines)
                found = lines
            else:
                self._rest = None
            lines -= found
            if self.checksum is not None:
                self.checksum = isal_zlib.crc32(block.buffer[block.start : block.stop], self.checksum)
            stored_bytes = self._reader.stored_bytes - self._accounted_bytes
            self._accounted_bytes += stored_bytes
            yield block, stored_bytes
            if self._rest is None:
                self._rest = next(self._blocks, None)

    def _split(self, block: Block, lines: int) -> tuple[Block, Block]:
        """The first `lines` lines of a block, and the others in memory of their own."""
        position, _ = after_newlines(block.buffer, block.start, block.stop, lines)
        others = self._reader.memory()
        others[: block.stop - position] = block.buffer[position : block.stop]
        return Block(block.buffer, block.start, position), Block(others, 0, block.stop - position)
