"""Parquet files of dictionary-encoded int32 and float32 columns with page checksums, written a row group at a time.

The part of the format that shards use, and no more: flat columns, one dictionary page and one version 1 data page a
column chunk, no statistics. Every Parquet reader reads it. Format: github.com/apache/parquet-format, parquet.thrift,
in Thrift's compact protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from isal import isal_zlib

from pipeline.parquet import codes
from pipeline.parquet.dictionary import MAX_PAGE_ROWS, DictionaryEncoder, varint
from pipeline.schema import Compression

CREATED_BY = "alphastream version 1 (build 0)"

_MAGIC = b"PAR1"
_CODECS: dict[Compression, tuple[int, str]] = {
    "none": (codes.UNCOMPRESSED, "uncompressed"),
    "zstd": (codes.ZSTD, "zstd"),
    "lz4": (codes.LZ4_RAW, "lz4_raw"),
}

_SAMPLE_BYTES = 4096
_WORTH_IT = 0.98
"""Packed codes of a column with many values are as good as random: if a sample keeps more than this share of its
size, a page is not compressed, which would take a tenth of all the time that writing takes."""


class Sink(Protocol):
    """Where the bytes of a file go, in order."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, kw_only=True)
class ParquetColumn:
    """One column: integers of int32's range, or 0 to 255 if it is `unsigned_byte`, or float32 if it is `floating`."""

    name: str
    optional: bool = False
    unsigned_byte: bool = False
    floating: bool = False

    @property
    def kind(self) -> int:
        """The code of its physical type."""
        return codes.FLOAT if self.floating else codes.INT32


class ParquetWriter:
    """Writes the columns of one row group after another into `sink`; `finish` ends the file."""

    def __init__(self, sink: Sink, columns: Iterable[ParquetColumn], compression: Compression) -> None:
        self._sink = sink
        self._columns = tuple(columns)
        number, name = _CODECS[compression]
        self._codec = None if compression == "none" else pa.Codec(name)
        self._quick = compression == "lz4"
        self._chunk_heads = [_chunk_head(column, number) for column in self._columns]
        self._encoder = DictionaryEncoder()
        self._row_groups: list[bytes] = []
        self._rows = 0
        self._position = 0
        self._write(_MAGIC)

    def write_group(self, values: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
        """Append a row group of up to 65,536 rows: for each column its values (R,) and, if it is optional, which
        of them are present (R,) uint8. Values of a floating one are given as the bits of float32, in int32."""
        start = self._position
        chunks = []
        rows = total_size = 0
        for index, (values_R, present_R) in enumerate(values):
            rows = len(values_R)
            chunk, size = self._write_chunk(index, values_R, present_R)
            chunks.append(chunk)
            total_size += size
        assert 0 < rows <= MAX_PAGE_ROWS
        assert len(chunks) == len(self._columns)
        self._row_groups.append(
            _struct(
                (1, _list(codes.STRUCT, chunks)),
                (2, _i64(total_size)),
                (3, _i64(rows)),
                (5, _i64(start)),
                (6, _i64(self._position - start)),
                (7, _i16(len(self._row_groups))),
            )
        )
        self._rows += rows

    def finish(self) -> None:
        """Write the footer, without which nothing can be read."""
        root = _struct((4, _binary("schema")), (5, _i32(len(self._columns))))
        footer = _struct(
            (1, _i32(2)),
            (2, _list(codes.STRUCT, [root, *map(_schema_element, self._columns)])),
            (3, _i64(self._rows)),
            (4, _list(codes.STRUCT, self._row_groups)),
            (6, _binary(CREATED_BY)),
        )
        self._write(footer + len(footer).to_bytes(4, "little") + _MAGIC)

    def _write_chunk(self, index: int, values_R: np.ndarray, present_R: np.ndarray | None) -> tuple[bytes, int]:
        """The ColumnChunk of one column, and its size before compression."""
        start = self._position
        rows = _zigzag(len(values_R))
        dictionary, data = self._encoder.encode(values_R, present_R)
        size = self._write_page(_DICTIONARY_HEAD, dictionary, _DICTIONARY_TAIL % _zigzag(len(dictionary) // 4))
        data_start = self._position
        size += self._write_page(_DATA_HEAD, data, _DATA_TAIL % rows)
        chunk = self._chunk_heads[index] + _CHUNK_TAIL % (
            rows,
            _zigzag(size),
            _zigzag(self._position - start),
            _zigzag(data_start),
            _zigzag(start),
        )
        return chunk, size

    def _write_page(self, head: bytes, body: memoryview, tail: bytes) -> int:
        """Write one page; its size before compression, header included."""
        stored = self._compress(body)
        checksum = _zigzag(_signed(isal_zlib.crc32(stored)))
        header = _PAGE_HEADER % (head, _zigzag(len(body)), _zigzag(len(stored)), checksum, tail)
        self._write(header + stored)
        return len(header) + len(body)

    def _compress(self, body: memoryview) -> bytes:
        if self._codec is None:
            return body.tobytes()
        if self._quick and len(body) > 4 * _SAMPLE_BYTES:
            middle = len(body) // 2
            if len(self._codec.compress(body[middle : middle + _SAMPLE_BYTES])) > _WORTH_IT * _SAMPLE_BYTES:
                return lz4_literals(body)
        return self._codec.compress(body, asbytes=True)

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._position += len(data)


def lz4_literals(body: memoryview) -> bytes:
    """An LZ4 block that holds `body` as it is: one sequence of literals, its length in base 255."""
    if len(body) < 15:
        return bytes([len(body) << 4]) + body
    more, last = divmod(len(body) - 15, 255)
    return b"".join((b"\xf0", b"\xff" * more, bytes([last]), body))


def _chunk_head(column: ParquetColumn, codec: int) -> bytes:
    """ColumnChunk up to the numbers that differ from group to group: file_offset, then within meta_data type,
    encodings, path and codec."""
    metadata = _struct(
        (1, _i32(column.kind)),
        (2, _list(codes.I32, map(_zigzag, (codes.PLAIN, codes.RLE, codes.RLE_DICTIONARY)))),
        (3, _list(codes.BINARY, [_binary(column.name)[1]])),
        (4, _i32(codec)),
    )
    outer = _struct((2, _i64(0)), (3, (codes.STRUCT, metadata[:-1])))
    return outer[:-1]


def _schema_element(column: ParquetColumn) -> bytes:
    """SchemaElement: a float, or an int32, annotated as UINT_8 both ways if it is one."""
    parts = [
        (1, _i32(column.kind)),
        (3, _i32(codes.OPTIONAL if column.optional else codes.REQUIRED)),
        (4, _binary(column.name)),
    ]
    if column.unsigned_byte:
        integer = _struct((1, (codes.BYTE, b"\x08")), (2, (codes.FALSE, b"")))
        parts += [(6, _i32(codes.UINT_8)), (10, (codes.STRUCT, _struct((10, (codes.STRUCT, integer)))))]
    return _struct(*parts)


# Thrift's compact protocol. A value is (type, bytes); a struct is its fields in ascending order and a stop byte.

_Value = tuple[int, bytes]


def _struct(*fields: tuple[int, _Value]) -> bytes:
    content = bytearray()
    last = 0
    for number, (kind, value) in fields:
        assert 0 < number - last < 16
        content.append(number - last << 4 | kind)
        content += value
        last = number
    content.append(0)
    return bytes(content)


def _list(kind: int, items: Iterable[bytes]) -> _Value:
    items = list(items)
    size = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + varint(len(items))
    return codes.LIST, size + b"".join(items)


def _binary(text: str) -> _Value:
    raw = text.encode()
    return codes.BINARY, varint(len(raw)) + raw


def _i16(value: int) -> _Value:
    return codes.I16, _zigzag(value)


def _i32(value: int) -> _Value:
    return codes.I32, _zigzag(value)


def _i64(value: int) -> _Value:
    return codes.I64, _zigzag(value)


@functools.lru_cache(maxsize=1024)
def _zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _field(distance: int, kind: int) -> bytes:
    """The byte before a value: how far its field's number is from the last one's, and its type."""
    return bytes([distance << 4 | kind])


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


# What is written 80 times a row group, as templates: %b is a number in zigzag base 128.
_DATA_HEAD = _struct((1, _i32(codes.DATA_PAGE)))[:-1]
_DICTIONARY_HEAD = _struct((1, _i32(codes.DICTIONARY_PAGE)))[:-1]
_PAGE_HEADER = b"%b" + 3 * (_field(1, codes.I32) + b"%b") + b"%b" + b"\0"
"""PageHeader: type, uncompressed_page_size, compressed_page_size, crc, and the header of its kind."""
_DATA_TAIL = (
    _field(codes.DATA_PAGE_HEADER - codes.PAGE_CRC, codes.STRUCT)
    + _field(1, codes.I32)
    + b"%b"
    + _struct((1, _i32(codes.RLE_DICTIONARY)), (2, _i32(codes.RLE)), (3, _i32(codes.RLE)))
)
"""DataPageHeader: num_values, encoding, encodings of the levels."""
_DICTIONARY_TAIL = (
    _field(codes.DICTIONARY_PAGE_HEADER - codes.PAGE_CRC, codes.STRUCT)
    + _field(1, codes.I32)
    + b"%b"
    + _struct((1, _i32(codes.PLAIN)))
)
"""DictionaryPageHeader: num_values, encoding."""
_CHUNK_TAIL = 3 * (_field(1, codes.I64) + b"%b") + 2 * (_field(2, codes.I64) + b"%b") + b"\0\0"
"""ColumnMetaData: num_values, sizes before and after compression, offsets of the data and the dictionary page."""
