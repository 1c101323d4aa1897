"""Row groups of our own shards, page by page, straight into column-major arrays.

`pipeline.parquet.writer` writes one kind of Parquet file: int32 columns, each chunk a dictionary page and version 1
data pages of indices into it. This reads that kind and no other, so it needs no Arrow table in between, encodes a
dictionary instead of every row, and can tell reading, decompressing and decoding apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.errors import StorageError, UnseenDamageError
from pipeline.parquet import codes
from pipeline.parquet.run_length import OUTSIDE, TAKEN, fill_page, read_varint, take_from_page

Encode = Callable[[NDArray[np.int32]], NDArray]
"""Values of a column as they are to be handed out: same length, 4 bytes each; 0 (missing) must stay 0."""

_HEADER_FIELDS = 8
_KIND, _SIZE, _STORED, _CRC, _VALUES, _ENCODING, _LEVELS, _START = range(_HEADER_FIELDS)
_MOST_PAGES = 64  # of a column chunk


@dataclass(frozen=True, eq=False, kw_only=True)
class Chunk:
    """One column of one row group, decompressed."""

    dictionary: NDArray[np.int32]
    pages: list[tuple[pa.Buffer, int]] = field(default_factory=list)
    """Data pages, each with the number of its rows."""

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.pages)


def read_chunks(raw: NDArray[np.uint8], *, rows: int, columns: int, codec: pa.Codec | None) -> list[Chunk]:
    """The column chunks of the row group `raw`, every page checked against its checksum, then decompressed.

    Page headers carry no checksum; what they say must fit together: pages without a gap to the end of `raw`, the
    right kinds in the right order, `columns` chunks of `rows` rows each.
    Raises: StorageError if they do not, or if a checksum is wrong.
    """
    headers = np.zeros((columns * _MOST_PAGES, _HEADER_FIELDS), np.int64)
    count = _find_pages(raw, headers)
    if count < 0:
        raise StorageError("a page's header is damaged")
    chunks: list[Chunk] = []
    for kind, size, stored, crc, values, encoding, levels, start in headers[:count].tolist():
        body = raw[start : start + stored]
        if isal_zlib.crc32(body) != crc & 0xFFFFFFFF:
            raise StorageError("a page's checksum is wrong")
        complete = not chunks or chunks[-1].rows == rows
        if (
            kind == codes.DICTIONARY_PAGE
            and complete
            and encoding in (codes.PLAIN, codes.PLAIN_DICTIONARY)
            and size == 4 * values
        ):
            chunks.append(Chunk(dictionary=np.frombuffer(_decompress(body, size, codec), np.int32)))
        elif (
            kind == codes.DATA_PAGE
            and not complete
            and encoding in (codes.RLE_DICTIONARY, codes.PLAIN_DICTIONARY)
            and levels == codes.RLE
        ):
            chunks[-1].pages.append((_decompress(body, size, codec), values))
        else:
            raise StorageError("its pages do not fit together")
    if [chunk.rows for chunk in chunks] != [rows] * columns:
        raise StorageError("its pages do not fit together")
    return chunks


def fill_column(chunk: Chunk, encode: Encode | None, out: NDArray, *, optional: bool) -> None:
    """Writes the rows of `chunk` to `out` (rows,), nulls as 0.

    Raises: UnseenDamageError if the pages do not hold what their headers say.
    """
    words = chunk.dictionary if encode is None else encode(chunk.dictionary)
    words = words.astype(out.dtype, copy=False)
    start = 0
    for page, rows in chunk.pages:
        if not fill_page(np.frombuffer(page, np.uint8), words, optional, out[start : start + rows]):
            raise UnseenDamageError("a page does not hold what its header says")
        start += rows


def take_column(
    chunk: Chunk, encode: Encode | None, order: NDArray[np.uint32], out: NDArray, *, optional: bool
) -> bool:
    """Writes the rows `order` (m,) of `chunk` to `out` (m,), nulls as 0, without looking at the others; False if its
    pages are not of the kind that allows it, and `fill_column` is to be used.

    Raises: UnseenDamageError if one of these rows is not in the dictionary.
    """
    if len(chunk.pages) != 1:
        return False
    page, rows = np.frombuffer(chunk.pages[0][0], np.uint8), chunk.pages[0][1]
    late = encode is not None and len(order) < len(chunk.dictionary)  # then there are fewer rows to encode
    words = chunk.dictionary if late or encode is None else encode(chunk.dictionary)
    taken = np.empty(len(order), np.int32) if late else out
    outcome = take_from_page(page, words.astype(taken.dtype, copy=False), rows, order, optional, taken)
    if outcome == OUTSIDE:
        raise UnseenDamageError("a page does not hold what its header says")
    if outcome == TAKEN and late and encode is not None:
        out[:] = encode(taken)
    return outcome == TAKEN


def _decompress(body: NDArray[np.uint8], size: int, codec: pa.Codec | None) -> pa.Buffer:
    buffer = pa.py_buffer(body)
    if codec is None or size == 0:
        if size > len(body):
            raise StorageError("a page does not hold what its header says")
        return buffer[:size]
    try:
        return codec.decompress(buffer, size)
    except (pa.ArrowException, OSError) as error:
        raise StorageError("a page cannot be decompressed") from error


@compiled
def _find_pages(raw, headers):  # pragma: no cover - compiled
    """Fills a row of `headers` for each page of a row group; how many there are, −1 for anything unexpected."""
    at, count = 0, 0
    while at < raw.size:
        if count == len(headers):
            return -1
        at = _read_header(raw, at, headers[count])
        stored = headers[count, _STORED]
        if at < 0 or stored < 0 or headers[count, _SIZE] < 0 or at + stored > raw.size:
            return -1
        headers[count, _START] = at
        at += stored
        count += 1
    return count


@compiled
def _read_header(raw, at, header):  # pragma: no cover - compiled
    """Reads the Thrift struct PageHeader at `at`; where it ends, −1 for anything unexpected."""
    field, outer = 0, 0
    while at < raw.size:
        byte = np.int64(raw[at])
        kind = byte & 15
        field += byte >> 4
        at += 1
        if kind == codes.STOP and outer == 0:
            return at
        if kind == codes.STOP:
            field, outer = outer, 0
        elif kind == codes.I32:
            at, value = read_varint(raw, at)
            if at < 0 or not _store(header, outer, field, (value >> 1) ^ -(value & 1)):
                return -1
        elif kind == codes.STRUCT and outer == 0 and field in (codes.DATA_PAGE_HEADER, codes.DICTIONARY_PAGE_HEADER):
            field, outer = 0, field
        elif (
            kind == codes.STRUCT
            and (outer, field) == (codes.DATA_PAGE_HEADER, codes.STATISTICS)
            and at < raw.size
            and raw[at] == codes.STOP
        ):
            at += 1  # statistics, and none in them
        elif kind not in (codes.TRUE, codes.FALSE) or outer != codes.DICTIONARY_PAGE_HEADER:
            return -1
    return -1


@compiled
def _store(header, outer, field, value):  # pragma: no cover - compiled
    """Keeps one integer of a page header; False for one that is not known."""
    if outer == 0 and codes.PAGE_TYPE <= field <= codes.PAGE_CRC:
        header[(_KIND, _SIZE, _STORED, _CRC)[field - codes.PAGE_TYPE]] = value
    elif field == codes.NUM_VALUES:
        header[_VALUES] = value
    elif field == codes.ENCODING:
        header[_ENCODING] = value
    elif field == codes.DEFINITION_LEVEL_ENCODING:
        header[_LEVELS] = value
    else:
        return field == codes.REPETITION_LEVEL_ENCODING
    return True
