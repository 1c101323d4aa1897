"""A data folder in an object store, or wherever else pyarrow.fs leads: read over a network that may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as arrow_fs

from pipeline.addresses import open_filesystem, without_secrets
from pipeline.errors import FetchError, StorageError, cause_of

CHUNK_BYTES = 8 << 20
"""An object store answers each read with a request of its own, so reads are long."""
PAUSES_SECONDS = (0.5, 1.0, 2.0)
"""Between the attempts at what failed."""
_OBJECT_STORES = ("s3", "gcs", "abfs")
T = TypeVar("T")


class RemoteFolder:
    """What lies below a URI (s3://, gs://, hdfs://, file://); names are relative to it. Safe to use from any thread."""

    def __init__(self, uri: str) -> None:
        """Raises: InputError for a URI that pyarrow.fs does not understand."""
        base, mark, query = uri.partition("?")  # the query holds options of the file system
        self.address = without_secrets(base.rstrip("/"))
        """What may be shown: without credentials and options."""
        self._files, self._path = open_filesystem(base.rstrip("/") + mark + query)

    def __str__(self) -> str:
        return self.address

    def address_of(self, name: str) -> str:
        """What to call a file in messages."""
        return f"{self.address}/{name}"

    def is_folder(self) -> bool:
        """Whether the URI leads to a folder, and not to a file or nowhere. Raises: FetchError."""
        found = self.retried(".", lambda: self._files.get_file_info(self._path))
        return found.type == arrow_fs.FileType.Directory

    def read(self, name: str) -> bytes:
        """The content of a file. Raises: FileNotFoundError; FetchError if it cannot be fetched."""
        return self.retried(name, lambda: b"".join(self.chunks(name)))

    def stamp(self, name: str) -> object:
        """What is another once a file was replaced: its size and time. Raises: FileNotFoundError; FetchError."""
        found = self.retried(name, lambda: self._files.get_file_info(self._where(name)))
        if found.type != arrow_fs.FileType.File:
            raise FileNotFoundError(f"{self.address_of(name)} is missing")
        return found.size, found.mtime_ns

    def chunks(self, name: str) -> Iterator[pa.Buffer]:
        """The content of a file, piece by piece. Raises: OSError as pyarrow.fs does, without another attempt."""
        with self._files.open_input_stream(self._where(name), compression=None) as stream:
            while (chunk := stream.read_buffer(CHUNK_BYTES)).size:
                yield chunk

    def read_part(self, name: str, *, offset: int, size: int, of_bytes: int) -> bytes:
        """`size` bytes of a file that should have `of_bytes`, from `offset` on.

        Raises: StorageError if it has another size; OSError as pyarrow.fs does, without another attempt.
        """
        with self.open(name) as file:
            if (found := file.size()) != of_bytes:
                raise StorageError(f"it has {found} bytes instead of {of_bytes}")
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise StorageError("it became shorter while it was read")
        return content

    def write(self, name: str, file: Path) -> None:
        """Upload a local file, which appears under its name when it is whole. Raises: FetchError if that fails."""
        where = self._where(name)

        def upload() -> None:
            whole = self._files.type_name in _OBJECT_STORES  # others show a file from its first byte on
            written = where if whole else f"{where}.tmp"
            if not whole:
                self._files.create_dir(where.rpartition("/")[0], recursive=True)
            with file.open("rb") as source, self._files.open_output_stream(written, compression=None) as stream:
                while chunk := source.read(CHUNK_BYTES):
                    stream.write(chunk)
            if not whole:
                self._files.move(written, where)

        self.retried(name, upload, done="uploaded")

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access. Raises: OSError as pyarrow.fs does."""
        return self._files.open_input_file(self._where(name))

    def names(self, folder: str) -> list[str]:
        """Files in a folder below this one; none if there is no such folder. Raises: FetchError."""
        selector = arrow_fs.FileSelector(self._where(folder), allow_not_found=True)
        entries = self.retried(folder, lambda: self._files.get_file_info(selector))
        return [f"{folder}/{entry.base_name}" for entry in entries if entry.type == arrow_fs.FileType.File]

    def retried(
        self,
        name: str,
        action: Callable[[], T],
        *,
        pause: Callable[[float], object] = time.sleep,
        done: str = "fetched",
    ) -> T:
        """What `action` on the file `name` returns, tried again after `PAUSES_SECONDS` if it raises an OSError.

        Raises: FetchError after the last attempt; at once FileNotFoundError, and what is a StorageError already.
        """
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return action()
            except (FileNotFoundError, StorageError):
                raise
            except OSError as error:
                seconds = next(pauses, None)
                if seconds is None:
                    raise FetchError(
                        f"{self.address_of(name)} cannot be {done} ({cause_of(error)}); check address, network "
                        "and credentials"
                    ) from error
            pause(seconds)

    def _where(self, name: str) -> str:
        return f"{self._path}/{name}"
