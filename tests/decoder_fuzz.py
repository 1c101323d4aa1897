"""The page decoder on pages of any content, in memory that ends where they end: run by tests in a process of its own.

`python -m tests.decoder_fuzz [EXAMPLES]`, by default 500 of each property: exit code 0 if every input gave a
StorageError or what the reference below gives. A read or write past the pages or past the rows asked for ends the
process by SIGSEGV, for what follows and precedes them may not be touched; under NUMBA_BOUNDSCHECK=1 it is an IndexError
also inside of them.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from pipeline.errors import StorageError, UnseenDamageError
from pipeline.parquet import fill_column, read_chunks, take_column

DATA, DICTIONARY = 0, 2
MANY = settings(
    max_examples=int(sys.argv[1]) if sys.argv[1:] else 500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Walled:
    """Memory between two pages that may not be touched."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for wall in (start, start + (pages + 1) * mmap.PAGESIZE):
            assert protect(ctypes.c_void_p(wall), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0, ctypes.get_errno()
        self._bytes = np.frombuffer(self._map, np.uint8)[mmap.PAGESIZE : -mmap.PAGESIZE]

    def hold(self, size: int, *, at_end: bool) -> np.ndarray:
        """`size` bytes that touch one of the walls."""
        return self._bytes[len(self._bytes) - size :] if at_end else self._bytes[:size]


RAW, OUT = Walled(4), Walled(1)


def varint(value: int) -> bytes:
    digits = [value >> 7 * i & 127 for i in range(max(1, -(-value.bit_length() // 7)))]
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def zigzag(value: int) -> bytes:
    return varint(2 * value if value >= 0 else -2 * value - 1)


@dataclass(frozen=True)
class Page:
    """A page's body and what its header says of it."""

    kind: int
    body: bytes
    values: int
    encoding: int
    size: int | None = None
    """None: the true one."""
    stored: int | None = None
    levels: int = 3

    def bytes(self, codec: pa.Codec | None) -> bytes:
        body = self.body if codec is None or not self.body else codec.compress(self.body, asbytes=True)
        size = len(self.body) if self.size is None else self.size
        stored = len(body) if self.stored is None else self.stored
        crc = int(np.uint32(isal_zlib.crc32(body[: max(stored, 0)])).astype(np.int32))
        head = b"".join(b"\x15" + zigzag(value) for value in (self.kind, size, stored, crc))
        if self.kind == DICTIONARY:
            inner = b"\x3c\x15" + zigzag(self.values) + b"\x15" + zigzag(self.encoding) + b"\0"
        else:
            fields = (self.values, self.encoding, self.levels, 3)
            inner = b"\x1c" + b"".join(b"\x15" + zigzag(value) for value in fields) + b"\0"
        return head + inner + b"\0" + body


def read_varint(body: bytes, at: int) -> tuple[int, int] | None:
    value = 0
    for i, byte in enumerate(body[at : at + 9]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return at + i + 1, value
    return None


def runs_of(body: bytes, width: int, count: int, limit: int) -> list[int] | None:
    """The first `count` indices, all below `limit`, of Parquet's hybrid of runs and packed indices."""
    found: list[int] = []
    at = 0
    while len(found) < count:
        if (header := read_varint(body, at)) is None or header[1] < 2:
            return None
        at, length, packed = header[0], header[1] >> 1, header[1] & 1
        end = at + (length * width if packed else -(-width // 8))
        if end > len(body):
            return None
        bits = int.from_bytes(body[at:end], "little")
        some = min(length * 8 if packed else length, count - len(found))
        found += [bits >> i * width & (1 << width) - 1 for i in range(some)] if packed else [bits] * some
        at = end
    return found if all(index < limit for index in found) else None


def rows_of(page: Page, dictionary: list[int], optional: bool) -> list[int] | None:
    """The rows of a data page, 0 where null; None if it does not hold them."""
    at, present = 0, [1] * page.values
    if optional:
        at = 4 + int.from_bytes(page.body[:4], "little")
        levels = runs_of(page.body[4:at], 1, page.values, 2) if at <= len(page.body) else None
        if levels is None:
            return None
        present = levels
    if at >= len(page.body):
        return None if any(present) else [0] * page.values
    width = page.body[at]
    indices = runs_of(page.body[at + 1 :], width, sum(present), len(dictionary)) if width <= 24 else None
    if indices is None:
        return None
    values = iter(dictionary[index] for index in indices)
    return [next(values) if here else 0 for here in present]


def joined(pages: list[list[int] | None]) -> list[int] | None:
    """The rows of all pages; None if one of them does not hold its rows."""
    whole = [page for page in pages if page is not None]
    return [row for page in whole for row in page] if len(whole) == len(pages) else None


def decode(raw: bytes, rows: int, codec: pa.Codec | None, optional: bool, at_end: bool) -> list[int] | None:
    """What the decoder under test makes of a row group of one column; None for a StorageError."""
    memory = RAW.hold(len(raw), at_end=at_end)
    memory[:] = np.frombuffer(raw, np.uint8)
    out = OUT.hold(4 * rows, at_end=at_end).view(np.int32)
    out[:] = -7
    try:
        (chunk,) = read_chunks(memory, rows=rows, columns=1, codec=codec)
        fill_column(chunk, None, out, optional=optional)
    except StorageError:
        return None
    return out.tolist()


def take(raw: bytes, rows: int, codec: pa.Codec | None, optional: bool, order: list[int]) -> list[int] | str:
    """What looking up the rows `order` alone comes to: they, or "otherwise", or "outside" of the dictionary."""
    memory, out = RAW.hold(len(raw), at_end=True), OUT.hold(4 * len(order), at_end=True).view(np.int32)
    memory[:] = np.frombuffer(raw, np.uint8)
    (chunk,) = read_chunks(memory, rows=rows, columns=1, codec=codec)
    try:
        done = take_column(chunk, None, np.array(order, np.uint32), out, optional=optional)
    except UnseenDamageError:
        return "outside"
    return out.tolist() if done else "otherwise"


huge = st.sampled_from([2**62 - 1, 2**61, 2**60 + 1, 2**32, 2**31, 10**6]) | st.integers(0, 2**63 - 1)
lengths = st.integers(0, 70) | huge


@st.composite
def runs(draw: st.DrawFn, width: int, count: int) -> bytes:
    """About `count` indices of `width` bits, mostly small ones."""
    parts = []
    while count > 0 and len(parts) < 12:
        packed = draw(st.booleans())
        length = draw(st.integers(1, 5) if packed else st.integers(1, 20))
        size = length * width if packed else -(-width // 8)
        content = draw(st.binary(min_size=size, max_size=size) | st.just(bytes(size)))
        claimed = draw(lengths) if draw(st.integers(0, 9)) == 0 else length
        parts.append(varint(min(claimed << 1 | packed, 2**63 - 1)) + content)
        count -= 8 * length if packed else length
    return b"".join(parts)


@st.composite
def data_bodies(draw: st.DrawFn, rows: int, optional: bool) -> bytes:
    width = draw(st.integers(0, 9) | st.integers(0, 26))
    levels = b""
    if optional:
        levels = draw(runs(1, rows))
        levels = (len(levels) if draw(st.integers(0, 9)) else draw(st.integers(0, 2**32 - 1))).to_bytes(
            4, "little"
        ) + levels
    body = bytearray(levels + bytes([width]) + draw(runs(width, rows)))
    fault = draw(st.sampled_from(["none", "none", "none", "byte", "cut", "more", "anything"]))
    if fault == "byte":
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    elif fault == "cut":
        del body[draw(st.integers(0, len(body))) :]
    elif fault == "more":
        body += draw(st.binary(max_size=9))
    return draw(st.binary(max_size=60)) if fault == "anything" else bytes(body)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Page, list[Page], bool]:
    """A dictionary page, the data pages after it, and whether the column is optional."""
    optional = draw(st.booleans())
    dictionary = draw(
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5) | st.integers(0, 300).map(lambda n: list(range(n)))
    )
    rows_of_pages = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    pages = [Page(DATA, draw(data_bodies(rows, optional)), rows, 8) for rows in rows_of_pages]
    return Page(DICTIONARY, np.array(dictionary, np.int32).tobytes(), len(dictionary), 0), pages, optional


codecs = st.sampled_from([None, "lz4_raw", "zstd"])
ONE_VALUE = Page(DICTIONARY, bytes(4), 1, 0)
TOO_MANY_GROUPS = Page(DATA, b"\x03" + varint(2**63 - 1), 60, 8)
"""A packed run of 3 bits an index, whose length in bytes is a negative int64."""


@MANY
@example(group=(ONE_VALUE, [TOO_MANY_GROUPS], False), codec=None, at_end=True)
@given(group=groups(), codec=codecs, at_end=st.booleans())
def any_body(group: tuple[Page, list[Page], bool], codec: str | None, at_end: bool) -> None:
    """Headers that tell the truth: exactly the reference's rows, or a StorageError where it finds none."""
    first, pages, optional = group
    dictionary = np.frombuffer(first.body, np.int32).tolist()
    expected = [rows_of(page, dictionary, optional) for page in pages]
    compressor = pa.Codec(codec) if codec else None
    raw = b"".join(page.bytes(compressor) for page in (first, *pages))
    found = decode(raw, sum(page.values for page in pages), compressor, optional, at_end)
    assert found == joined(expected)


@st.composite
def packed_groups(draw: st.DrawFn) -> tuple[Page, Page, bool]:
    """A dictionary page and one data page of single bit-packed runs, as our writer has them, mostly."""
    optional, rows, distinct = draw(st.booleans()), draw(st.integers(1, 90)), draw(st.integers(0, 20))
    present = draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) if optional else [True] * rows
    width = max((distinct - 1).bit_length(), 1)
    groups = -(-sum(present) // 8)
    bits = (
        draw(st.binary(min_size=groups * width, max_size=groups * width))
        if draw(st.booleans())
        else bytes(groups * width)
    )
    run = np.packbits(present, bitorder="little").tobytes()
    levels = varint(len(run) << 1 | 1) + run
    body = (
        (len(levels).to_bytes(4, "little") + levels if optional else b"")
        + bytes([width])
        + varint(groups << 1 | 1)
        + bits
    )
    dictionary = np.arange(7, 7 + distinct, dtype=np.int32)
    return Page(DICTIONARY, dictionary.tobytes(), distinct, 0), Page(DATA, body, rows, 8), optional


@MANY
@given(
    group=packed_groups() | groups().map(lambda group: (group[0], group[1][0], group[2])),
    codec=codecs,
    draws=st.lists(st.integers(0, 2**32), max_size=30),
)
def any_rows_of_a_body(group: tuple[Page, Page, bool], codec: str | None, draws: list[int]) -> None:
    """Some rows of a page alone: those of the reference, which has none only if an index that is needed is wrong or
    where all are decoded to find out. Whether it can be done at all is the same for any rows."""
    first, page, optional = group
    dictionary = np.frombuffer(first.body, np.int32).tolist()
    order = [draw % page.values for draw in draws]
    compressor = pa.Codec(codec) if codec else None
    raw = b"".join(each.bytes(compressor) for each in (first, page))
    expected = rows_of(page, dictionary, optional)
    found = take(raw, page.values, compressor, optional, order)
    every = take(raw, page.values, compressor, optional, list(range(page.values)))
    assert (found == "otherwise") == (every == "otherwise")
    if expected is None:
        assert every in ("otherwise", "outside")
    else:
        assert every in ("otherwise", expected)
        assert found in ("otherwise", [expected[row] for row in order])


numbers = st.integers(-3, 70) | st.sampled_from([2**31 - 1, -(2**31), 2**40, 2**62]) | st.integers(-(2**31), 2**31 - 1)


@MANY
@given(
    group=groups(),
    codec=codecs,
    at_end=st.booleans(),
    wrong=st.dictionaries(
        st.sampled_from(["kind", "values", "encoding", "size", "stored", "levels"]), numbers, min_size=1
    ),
    which=st.integers(0, 3),
)
def any_header(
    group: tuple[Page, list[Page], bool], codec: str | None, at_end: bool, wrong: dict[str, int], which: int
) -> None:
    """One header that lies: a StorageError, or the rows that the bodies hold."""
    first, pages, optional = group
    dictionary = np.frombuffer(first.body, np.int32).tolist()
    truth = [rows_of(page, dictionary, optional) for page in pages]
    compressor = pa.Codec(codec) if codec else None
    told = [first, *pages]
    told[which % len(told)] = replace(told[which % len(told)], **wrong)
    raw = b"".join(page.bytes(compressor) for page in told)
    found = decode(raw, sum(page.values for page in pages), compressor, optional, at_end)
    if found is not None and [page.values for page in told] == [page.values for page in (first, *pages)]:
        assert found == joined(truth) or joined(truth) is None


@MANY
@given(
    raw=st.binary(max_size=200), codec=codecs, rows=st.integers(1, 100), optional=st.booleans(), at_end=st.booleans()
)
def any_bytes(raw: bytes, codec: str | None, rows: int, optional: bool, at_end: bool) -> None:
    """No pages at all."""
    assert decode(raw, rows, pa.Codec(codec) if codec else None, optional, at_end) is None


if __name__ == "__main__":
    any_body()
    any_rows_of_a_body()
    any_header()
    any_bytes()
