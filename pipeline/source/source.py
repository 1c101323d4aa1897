"""Where log lines come from: local, remote and compressed files, and standard input, as one stream of bytes."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs as arrow_fs

from pipeline.addresses import is_remote, open_filesystem, without_secrets
from pipeline.errors import InputError, StorageError, cause_of
from pipeline.source.stream import GZIP, ZSTD, SourceStream

STANDARD_INPUT = "-"
LOG_SUFFIXES = ("", ".tsv", ".csv", ".txt", ".log", ".gz", ".zst")
"""Endings that make a file of a folder a log file; files named one by one may end in anything."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of log lines, as it was when it was found."""

    name: str
    """Absolute path, URI, or `-` for standard input."""
    size: int | None
    """Bytes as stored (compressed where it is); None for standard input."""
    modified_ns: int | None

    @property
    def is_standard_input(self) -> bool:
        return self.name == STANDARD_INPUT

    @property
    def address(self) -> str:
        """The name without the user and password that a URI may carry: what may be shown and stored."""
        return without_secrets(self.name)

    @property
    def label(self) -> str:
        """The last part of the name, for messages and file names."""
        return "standard-input" if self.is_standard_input else PurePosixPath(self.name.split("?")[0]).name

    def open(self) -> SourceStream:
        """The decompressed bytes from the beginning.

        Raises: InputError where it cannot be opened.
        """
        return SourceStream(_open_raw(self), self.address)

    def is_plain_local(self) -> bool:
        """Whether its bytes can be read from any position: an uncompressed regular local file."""
        if self.is_standard_input or is_remote(self.name):
            return False
        with Path(self.name).open("rb") as file:
            magic = file.read(4)
        return not (magic.startswith(GZIP) or magic == ZSTD)

    def refresh(self) -> Source:
        """The same file as it is now."""
        return self if self.is_standard_input else _describe(self.name)


def find_sources(names: Iterable[str | Path]) -> tuple[Source, ...]:
    """Every file that the names stand for, in natural order (day_2 before day_10).

    A name is a file, a folder (its log files, see LOG_SUFFIXES; not those of its folders), a pattern with `*`, `?` or
    `[`, a URI that pyarrow.fs understands (s3://, gs://, hdfs://, file://) of any of these, or `-` for standard input.
    Raises: InputError for a name that stands for nothing, an empty file or one that is named twice.
    """
    found = [source for name in names for source in _expand(str(name))]
    if not found:
        raise InputError("no source was named; give a log file, a folder or a pattern")
    found.sort(key=lambda source: natural_key(source.name))
    for before, after in itertools.pairwise(found):
        if before.name == after.name:
            raise InputError(f"{after.address} is named twice; name each source once")
    if len(found) > 1 and any(source.is_standard_input for source in found):
        raise InputError("standard input (-) cannot be combined with other sources; name it alone")
    empty = next((source for source in found if source.size == 0), None)
    if empty:
        raise InputError(f"{empty.address} is empty; remove it from the sources or fetch it again")
    return tuple(found)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that takes runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def _expand(name: str) -> list[Source]:
    if name == STANDARD_INPUT:
        return [Source(name=name, size=None, modified_ns=None)]
    if is_remote(name):
        return _expand_remote(name)
    is_pattern = any(character in name for character in "*?[")
    path = Path(name).expanduser()
    if not path.exists() and is_pattern:
        root = Path(path.anchor or ".")
        matches = [match for match in root.glob(str(path.relative_to(path.anchor))) if match.is_file()]
        if not matches:
            raise InputError(f"{name} matches no file; check the pattern")
        return [_describe(str(match.absolute())) for match in matches]
    if path.is_dir():
        files = [child for child in path.iterdir() if child.is_file() and _is_log(child.name)]
        if not files:
            raise InputError(f"{name} holds no log files ({_suffixes()}); name another folder or the files themselves")
        return [_describe(str(file.absolute())) for file in files]
    return [_describe(str(path.absolute()))]


def _describe(name: str) -> Source:
    if is_remote(name):
        filesystem, path = open_filesystem(name)
        return _remote_source(name, _remote_info(name, filesystem, path))
    try:
        status = Path(name).stat()
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({cause_of(error)}); check the path and its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is no regular file; name a log file, or pipe it in with -")
    if not os.access(name, os.R_OK):
        raise InputError(f"{name} cannot be read (permission denied); check its permissions")
    return Source(name=name, size=status.st_size, modified_ns=status.st_mtime_ns)


def _remote_source(uri: str, info: arrow_fs.FileInfo) -> Source:
    if info.type != arrow_fs.FileType.File:
        raise InputError(f"{without_secrets(uri)} does not exist or is no file; check the address")
    return Source(name=uri, size=info.size, modified_ns=info.mtime_ns)


def _expand_remote(uri: str) -> list[Source]:
    address, mark, query = uri.partition("?")  # the query holds options of the file system
    is_pattern = "*" in address or "[" in address
    base, pattern = address.rsplit("/", 1) if is_pattern else (address.rstrip("/"), "*")
    filesystem, path = open_filesystem(base + mark + query)
    info = _remote_info(uri, filesystem, path)
    if info.type == arrow_fs.FileType.File:
        return [_remote_source(uri, info)]
    entries = _remote_info(uri, filesystem, arrow_fs.FileSelector(path, allow_not_found=True))
    chosen = [
        entry
        for entry in entries
        if entry.type == arrow_fs.FileType.File
        and fnmatch.fnmatchcase(entry.base_name, pattern)
        and (is_pattern or _is_log(entry.base_name))
    ]
    if not chosen:
        raise InputError(f"{without_secrets(uri)} names no log file; check the address")
    return [_remote_source(f"{base}/{entry.base_name}{mark}{query}", entry) for entry in chosen]


def _remote_info(uri: str, filesystem: arrow_fs.FileSystem, what: Any) -> Any:
    try:
        return filesystem.get_file_info(what)
    except OSError as error:
        raise StorageError(
            f"{without_secrets(uri)} cannot be reached ({cause_of(error)}); check address, network and credentials"
        ) from error


def _open_raw(source: Source) -> Any:
    if source.is_standard_input:
        return sys.stdin.buffer
    try:
        if is_remote(source.name):
            filesystem, path = open_filesystem(source.name)
            return filesystem.open_input_stream(path)
        return Path(source.name).open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"{source.address} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{source.address} cannot be opened ({cause_of(error)}); check its permissions") from None


def _is_log(name: str) -> bool:
    return not name.startswith((".", "_")) and PurePosixPath(name).suffix in LOG_SUFFIXES


def _suffixes() -> str:
    return ", ".join(suffix or "no ending" for suffix in LOG_SUFFIXES)
