"""What sources hold, told from their beginnings before any is read whole: no empty log, and no log twice."""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs as arrow_fs

from pipeline.addresses import is_remote, open_filesystem
from pipeline.errors import InputError
from pipeline.line_buffer import MAX_LINE_BYTES
from pipeline.schema import LogFormat
from pipeline.source.blocks import check_header
from pipeline.source.find import is_empty
from pipeline.source.source import Source

BEGINNING_BYTES = 1 << 14
"""Unpacked bytes of every source that are compared first."""
COMPARED_BYTES = 1 << 26
"""Two sources that agree in so many unpacked bytes, which no two logs do by chance, are taken for one log."""
SHORTEST_BYTES = 1 << 10
"""A shorter log is not taken for the beginning of a longer one that begins alike: a few rows may agree by chance."""
_CHUNK_BYTES = 1 << 20


class _Beginning(NamedTuple):
    source: Source
    text: bytes
    """The first bytes of the rows: without header, with \\n for \\r\\n, without the last line end of the source."""
    is_whole: bool


def check_sources(sources: Sequence[Source], log_format: LogFormat) -> None:
    """Look at the beginning of every source but standard input.

    Raises: InputError for a source that is not text, is empty once it is unpacked, holds nothing but its header, has a
    header that does not fit; and for two that hold the same rows: one file under two names (a link, a path beside its
    URI), or equal content, however it is packed and whether its lines end in \\n or \\r\\n. Content is taken for equal
    if all of it is, if the first 64 MiB of it are, or if one of them, of 1 KiB at least, is the beginning of the other;
    of two plain local files also if it is the end of the other, or if their last 64 MiB are equal.
    """
    sources = [source for source in sources if not source.is_standard_input]
    _check_identities(sources)
    with ThreadPoolExecutor(min(16, len(sources) or 1)) as threads:
        beginnings = list(threads.map(lambda source: _read_beginning(source, log_format), sources))
    for first, second in _alike(beginnings):
        if reason := _same_rows(first, second, log_format):
            earlier, later = sorted((first.source, second.source), key=sources.index)
            raise InputError(f"{earlier.address} and {later.address} {reason}; name each log once")
    _check_endings(sources, log_format)


def _check_endings(sources: Sequence[Source], log_format: LogFormat) -> None:
    """Raises: InputError for two plain local files of which one ends in all the rows of the other."""
    ending_alike: dict[bytes, list[Source]] = {}
    for source in sources:
        if source.is_plain_local():
            text = _ending(source, log_format, BEGINNING_BYTES)
            if len(text) >= SHORTEST_BYTES:
                ending_alike.setdefault(text[-SHORTEST_BYTES:], []).append(source)
    for alike in ending_alike.values():
        for first, second in itertools.combinations(alike, 2):
            texts = [_ending(source, log_format, COMPARED_BYTES) for source in (first, second)]
            shorter, longer = sorted(texts, key=len)
            if longer.endswith(shorter):
                inner = first if texts[0] is shorter else second
                is_whole = inner.size is not None and inner.size <= COMPARED_BYTES
                how = f"{inner.label} is the end of the other" if is_whole else f"their last {len(shorter):,} bytes are"
                raise InputError(f"{first.address} and {second.address} hold the same rows ({how}); name each log once")


def _ending(source: Source, log_format: LogFormat, limit: int) -> bytes:
    """The last rows of a plain local file as they are compared (see _Beginning), of `limit` stored bytes at most."""
    with Path(source.name).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - limit))
        text = file.read(limit)
    if start == 0:
        text = text.removeprefix(codecs.BOM_UTF8)
        text = text.partition(b"\n")[2] if log_format.header else text
    return text.replace(b"\r\n", b"\n").removesuffix(b"\n")


def _check_identities(sources: Sequence[Source]) -> None:
    seen: dict[object, Source] = {}
    for source in sources:
        before = seen.setdefault(_identity(source), source)
        if before is not source:
            raise InputError(f"{before.address} and {source.address} are one file; name each source once")


def _identity(source: Source) -> object:
    """Equal for two names of one file."""
    path = source.name
    if is_remote(path):
        filesystem, path = open_filesystem(source.name)
        if not isinstance(filesystem, arrow_fs.LocalFileSystem):
            return filesystem.type_name, source.name.partition("?")[2], path
    status = os.stat(path)  # noqa: PTH116
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)  # some file systems number none


def _read_beginning(source: Source, log_format: LogFormat) -> _Beginning:
    texts = normalized(source, log_format)
    with closing(texts):
        text = b""
        while len(text) < BEGINNING_BYTES:
            chunk = next(texts, None)
            if chunk is None:
                break
            text += chunk
    is_whole = len(text) < BEGINNING_BYTES
    if not text:
        raise is_empty(source)
    return _Beginning(source, text[:BEGINNING_BYTES], is_whole)


def normalized(source: Source, log_format: LogFormat, chunk_bytes: int = BEGINNING_BYTES) -> Generator[bytes]:
    """The rows of a source as they are compared (see _Beginning), in chunks."""
    memory = memoryview(bytearray(chunk_bytes))
    rest, header = b"", log_format.header
    with source.open() as stream:
        while True:
            count = stream.fill(memory)
            ended = count < len(memory)
            text = (rest + bytes(memory[:count])).replace(b"\r\n", b"\n")
            if header:
                if b"\n" not in text and not ended and len(text) < MAX_LINE_BYTES:
                    rest = text
                    continue
                line, _, text = text.partition(b"\n")
                check_header(source, log_format, line)
                header = False
            if ended:
                yield text.removesuffix(b"\n")
                return
            kept = len(text) - len(text.rstrip(b"\r\n"))
            rest = text[len(text) - kept :]
            yield text[: len(text) - kept]


def _alike(beginnings: list[_Beginning]) -> Iterator[tuple[_Beginning, _Beginning]]:
    """Pairs of which one begins with all that was read of the other; not those that one of these pairs implies."""
    ordered = sorted(beginnings, key=lambda each: (each.text, not each.is_whole))
    for _, group in itertools.groupby(ordered, key=lambda each: each.text):
        yield from itertools.combinations(list(group), 2)
    for first, second in itertools.pairwise(ordered):
        if first.text != second.text and first.is_whole and second.text.startswith(first.text):
            yield first, second


def _same_rows(first: _Beginning, second: _Beginning, log_format: LogFormat) -> str | None:
    """Why two sources that begin alike hold the same rows, or None if they differ further on."""
    if first.is_whole and second.is_whole and first.text == second.text:
        return "hold the same rows"
    shorter = min(first, second, key=lambda each: (not each.is_whole, len(each.text)))
    if shorter.is_whole:
        return _beginning_of(shorter.source) if len(shorter.text) >= SHORTEST_BYTES else None
    return _compare(first.source, second.source, log_format)


def _beginning_of(source: Source) -> str:
    return f"hold the same rows ({source.label} is the beginning of the other)"


def _compare(first: Source, second: Source, log_format: LogFormat) -> str | None:
    """The same, read side by side."""
    sides = [normalized(source, log_format, _CHUNK_BYTES) for source in (first, second)]
    held, compared = [b"", b""], 0
    with closing(sides[0]), closing(sides[1]):
        while compared < COMPARED_BYTES:
            for i, side in enumerate(sides):
                if not held[i]:
                    held[i] = next((chunk for chunk in side if chunk), b"")
            if not held[0] and not held[1]:
                return "hold the same rows"
            if not held[0] or not held[1]:
                return _beginning_of(second if held[0] else first)
            common = min(map(len, held))
            if held[0][:common] != held[1][:common]:
                return None
            held = [text[common:] for text in held]
            compared += common
    return f"hold the same rows (their first {compared:,} bytes are)"
