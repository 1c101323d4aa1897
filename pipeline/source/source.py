"""One file of log lines, as it was when it was found, and how it is opened."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs as arrow_fs

from pipeline.addresses import is_remote, open_filesystem, without_secrets
from pipeline.errors import InputError, StorageError, cause_of
from pipeline.source.packing import MAGIC_BYTES, packing_of
from pipeline.source.stream import SourceStream

STANDARD_INPUT = "-"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of log lines, as it was when it was found."""

    name: str
    """Absolute path, URI, or `-` for standard input."""
    size: int | None
    """Bytes as stored (compressed if it is); None for standard input."""
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

    @property
    def named(self) -> str:
        """The address as a sentence has it."""
        return "standard input" if self.is_standard_input else self.address

    def open(self) -> SourceStream:
        """The unpacked bytes from the beginning.

        Raises: InputError if it cannot be opened.
        """
        return SourceStream(_open_raw(self), self.named)

    def is_plain_local(self) -> bool:
        """Whether its bytes can be read from any position: an uncompressed regular local file."""
        if self.is_standard_input or is_remote(self.name):
            return False
        with Path(self.name).open("rb") as file:
            return packing_of(file.read(MAGIC_BYTES)) is None

    def refresh(self) -> Source:
        """The same file as it is now."""
        return self if self.is_standard_input else describe_source(self.name)


def describe_source(name: str) -> Source:
    """The source of a local path or a URI of one file. Raises: InputError for anything else."""
    if is_remote(name):
        filesystem, path = open_filesystem(name)
        return remote_source(name, remote_info(name, filesystem, path))
    try:
        status = Path(name).stat()
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({cause_of(error)}); check the path and its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is not a regular file; name a log file, or pipe it in with -")
    if not os.access(name, os.R_OK):
        raise InputError(f"{name} cannot be read (permission denied); check its permissions")
    return Source(name=name, size=status.st_size, modified_ns=status.st_mtime_ns)


def remote_source(uri: str, info: arrow_fs.FileInfo) -> Source:
    """The source of a URI that is known to the file system as `info`. Raises: InputError for what is not a file."""
    if info.type != arrow_fs.FileType.File:
        raise InputError(f"{without_secrets(uri)} does not exist or is not a file; check the address")
    return Source(name=uri, size=info.size, modified_ns=info.mtime_ns)


def remote_info(uri: str, filesystem: arrow_fs.FileSystem, what: Any) -> Any:
    """What the file system says of a path, or of all that a selector names. Raises: StorageError if it cannot."""
    try:
        return filesystem.get_file_info(what)
    except OSError as error:
        raise StorageError(
            f"{without_secrets(uri)} cannot be reached ({cause_of(error)}); check address, network and credentials"
        ) from error


def _open_raw(source: Source) -> Any:
    if source.is_standard_input:
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("standard input (-) is closed; pipe a log into it, or name a file")
        return sys.stdin.buffer
    try:
        if is_remote(source.name):
            filesystem, path = open_filesystem(source.name)
            return filesystem.open_input_stream(path, compression=None)
        return Path(source.name).open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"{source.address} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{source.address} cannot be opened ({cause_of(error)}); check its permissions") from None
