"""A folder of downloaded shards with a size limit, shared by threads and processes; it deletes what it wrote alone."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sqlite3
import stat
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from pipeline.errors import FetchError, InputError, StorageError, cause_of
from pipeline.shards.durable import sync_descriptor, sync_folder

FOLDER = "alphastream-shards"
MARKER = "CACHEDIR.TAG"
"""The name and first line by which backup programs know a cache (https://bford.info/cachedir)."""
MARK = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# Shards that alphastream downloaded. It deletes the files that index.sqlite lists, and no others.\n"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEMA = """
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS shards (
    sha256 TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,  -- of the whole shard, also while it is being downloaded
    whole INTEGER NOT NULL,  -- 0: being downloaded, to SHA256.part; 1: SHA256.parquet
    used INTEGER NOT NULL    -- counts up: the least was used the longest ago
);
CREATE INDEX IF NOT EXISTS by_use ON shards (used);
"""
_NEXT_USE = "(SELECT coalesce(max(used), 0) + 1 FROM shards)"
_GONE = (errno.ENOENT, errno.ELOOP)
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
_UNWRITABLE_IF_FULL = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class CacheWriteError(FetchError):
    """The cache takes nothing more for now, as its disk is full or read-only; what is in it can be read."""


class ShardCache:
    """Shards by the SHA-256 of their content, in the folder `alphastream-shards` below `path`.

    All shards in it, those on their way included, take at most `limit_bytes`. The index lists a file before it is
    made, and only a listed file is ever deleted: the least recently used first, also while somebody reads it, whose
    open file stays whole. Symbolic links are neither followed nor deleted.
    """

    def __init__(self, path: Path, limit_bytes: int | None = None) -> None:
        """`limit_bytes` is by default half of what the disk has free, counting what is cached here as free; it shrinks
        and grows with that.

        Raises: InputError if something else has the folder's name; FetchError if it cannot be written.
        """
        self.folder = path / FOLDER
        self._mutex = threading.Lock()
        with self._disk_errors():
            self._claim()
            self._database = sqlite3.connect(
                self.folder / "index.sqlite", timeout=60, isolation_level=None, check_same_thread=False
            )
            self._connection = threading.Lock()
            with self._locked():
                self._database.executescript(_SCHEMA)
        self.given_bytes = limit_bytes
        """The limit that was given, if one was."""

    @property
    def limit_bytes(self) -> int:
        """What shards may take here now."""
        if self.given_bytes is not None:
            return self.given_bytes
        with self._disk_errors():
            return (shutil.disk_usage(self.folder).free + self.used_bytes()) // 2

    def used_bytes(self) -> int:
        """What the cached shards take, those on their way included."""
        return self._query("SELECT coalesce(sum(bytes), 0) FROM shards")[0][0]

    def __contains__(self, sha256: str) -> bool:
        """Whether a shard is here or on its way."""
        return bool(self._query("SELECT 1 FROM shards WHERE sha256 = ?", sha256))

    def use(self, sha256s: Iterable[str]) -> None:
        """Counts those of the shards that are here as used now, the last most recently. Raises: CacheWriteError."""
        with self._disk_errors(), self._connection:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                self._database.executemany(
                    f"UPDATE shards SET used = {_NEXT_USE} WHERE sha256 = ?", [(sha256,) for sha256 in sha256s]
                )

    def open(self, sha256: str) -> FileIO | None:
        """A whole shard for reading, whoever deletes it meanwhile; None if it is not here."""
        with self._disk_errors():
            file = self._opened(sha256)
            if file is None and self._is_whole(sha256):
                with self._locked():  # without hard links, a download is listed as whole before it has its name
                    file = self._opened(sha256)
                    if file is None and self._is_whole(sha256):
                        self._delete(sha256)
            return file

    def begin(self, sha256: str, size: int, *, keep: Collection[str] = ()) -> Download | None:
        """A download of `size` bytes, for which the least recently used shards that are not in `keep` make room.

        None if there is nothing to do or no room: the shard is here, it is being downloaded, what is in `keep` or
        being downloaded leaves too little, or it is larger than `limit_bytes`, which waiting does not change.
        Raises: CacheWriteError if the disk itself has no room, and what may go would not make it; StorageError if a
        file that this cache did not write has the shard's name; FetchError if the folder cannot be written.
        """
        if not _SHA256.fullmatch(sha256):
            raise StorageError(f"{sha256!r} is not a SHA-256; give a manifest that `alphastream preprocess` wrote")
        with self._disk_errors(), self._locked():
            self._forget_dead_downloads()
            if sha256 in self or not self._make_room(size, keep):
                return None
            self._refuse_stranger(self._path(sha256))
            self._refuse_stranger(self._part(sha256))
            self._query(f"INSERT INTO shards VALUES (?, ?, 0, {_NEXT_USE})", sha256, size)
            try:
                return Download(self, sha256)
            except BaseException:
                self._query("DELETE FROM shards WHERE sha256 = ?", sha256)  # whatever has its name is not ours
                raise

    def give_way(self, size: int, *, keep: Collection[str] = ()) -> bool:
        """Deletes the least recently used shards that are not in `keep`, `size` bytes or what there is; False if none.

        For a disk that is full although there seemed to be room: a quota is not in what it says to be free.
        """
        with self._disk_errors(), self._locked():
            victims, _ = self._least_used(size, keep)
            for sha256 in victims:
                self._delete(sha256)
            return bool(victims)

    def discard(self, sha256: str) -> None:
        """Deletes a shard that is here; a later `begin` downloads it again."""
        with self._disk_errors(), self._locked():
            if self._is_whole(sha256):
                self._delete(sha256)

    def close(self) -> None:
        """Closes the index; shards stay, for whoever comes next."""
        with self._connection:
            self._database.close()

    def _claim(self) -> None:
        """Makes the folder, or makes sure that it is a shard cache."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink() or not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder of its own; remove it, or set data.cache_path elsewhere")
        self._refuse_unmarked()
        with self._locked():
            self._refuse_unmarked()
            with os.fdopen(os.open(self.folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as file:
                if file.read() != MARK:  # nothing, or what a crash left of it
                    file.seek(0)
                    file.write(MARK)
                    file.flush()
                    sync_descriptor(file.fileno())
                    sync_folder(self.folder)

    def _refuse_unmarked(self) -> None:
        names = {path.name for path in self.folder.iterdir()}  # before the marker, which another process may just write
        marker = self.folder / MARKER
        mark = marker.read_bytes() if marker.is_file() else b""
        if mark != MARK and not (MARK.startswith(mark) and names <= {"lock", MARKER}):
            raise InputError(f"{self.folder} holds other things than cached shards; set data.cache_path elsewhere")

    def _make_room(self, size: int, keep: Collection[str]) -> bool:
        """Deletes shards until `size` bytes more keep to the limit and fit on the disk; none if that is out of reach.

        Raises: CacheWriteError if the limit would be kept to, and it is the disk that has no room.
        """
        beyond_limit = self.used_bytes() + size - self.limit_bytes
        beyond_disk = size + self._to_come_bytes() - shutil.disk_usage(self.folder).free
        victims, found = self._least_used(max(beyond_limit, beyond_disk), keep)
        if found < beyond_limit:
            return False
        if found < beyond_disk:
            raise self._write_error(os.strerror(errno.ENOSPC))
        for sha256 in victims:
            self._delete(sha256)
        return True

    def _least_used(self, size: int, keep: Collection[str]) -> tuple[list[str], int]:
        """Whole shards not in `keep`, the least recently used first, that take at least `size` bytes or are all there
        are; and what they take.
        """
        victims, found = list[str](), 0
        for sha256, size_there in self._query("SELECT sha256, bytes FROM shards WHERE whole ORDER BY used"):
            if found >= size:
                break
            if sha256 not in keep:
                victims.append(sha256)
                found += size_there
        return victims, found

    def _to_come_bytes(self) -> int:
        """What downloads under way will still write."""
        missing = 0
        for sha256, size in self._query("SELECT sha256, bytes FROM shards WHERE NOT whole"):
            with suppress(FileNotFoundError):
                missing += max(size - self._part(sha256).lstat().st_size, 0)
        return missing

    def _forget_dead_downloads(self) -> None:
        """Removes what downloads left behind whose process has ended."""
        for (sha256,) in self._query("SELECT sha256 FROM shards WHERE NOT whole"):
            try:
                descriptor = os.open(self._part(sha256), os.O_RDWR | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._delete(sha256)
                continue
            with closing(os.fdopen(descriptor, "rb")), suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._delete(sha256)

    def _finish(self, sha256: str) -> None:
        with self._disk_errors(), self._locked():
            part, path = self._part(sha256), self._path(sha256)
            self._refuse_stranger(path)
            try:
                os.link(part, path, follow_symlinks=False)  # unlike a rename, it overwrites nothing
            except FileExistsError:
                self._refuse_stranger(path)
                raise
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self._list_whole(sha256)
                part.rename(path)
            else:
                self._list_whole(sha256)
                part.unlink()

    def _list_whole(self, sha256: str) -> None:
        self._query(f"UPDATE shards SET whole = 1, used = {_NEXT_USE} WHERE sha256 = ?", sha256)

    def _abandon(self, sha256: str) -> None:
        with self._disk_errors(), self._locked():
            self._delete(sha256)

    def _delete(self, sha256: str) -> None:
        """Deletes the files of a listed shard, then its entry. Only ever called for what the index lists."""
        assert _SHA256.fullmatch(sha256)
        for path in self._files(sha256):
            with suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()
        self._query("DELETE FROM shards WHERE sha256 = ?", sha256)

    def _files(self, sha256: str) -> list[Path]:
        """The name that a listed shard has; also, or only, its other one if a crash within `_finish` left that."""
        whole = self._is_whole(sha256)
        part, path = self._part(sha256), self._path(sha256)
        listed, other = (path, part) if whole else (part, path)
        if not os.path.lexists(listed):
            return [other] if whole else []
        with suppress(FileNotFoundError):
            if os.path.samestat(listed.lstat(), other.lstat()):
                return [other, listed]
        return [listed]

    def _is_whole(self, sha256: str) -> bool:
        return bool(self._query("SELECT 1 FROM shards WHERE sha256 = ? AND whole", sha256))

    def _opened(self, sha256: str) -> FileIO | None:
        """The file of a whole shard; None if none is listed, or it is gone or no longer as long as it was."""
        listed = self._query("SELECT bytes FROM shards WHERE sha256 = ? AND whole", sha256)
        if not listed:
            return None
        try:
            file = os.fdopen(os.open(self._path(sha256), os.O_RDONLY | os.O_NOFOLLOW), "rb", 0)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        if os.fstat(file.fileno()).st_size == listed[0][0]:
            return file
        file.close()
        return None

    def _refuse_stranger(self, path: Path) -> None:
        if os.path.lexists(path):
            raise FetchError(f"{path} was not written by this cache; remove it, or set data.cache_path elsewhere")

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.parquet"

    def _part(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.part"

    def _query(self, statement: str, *values: Any) -> list[Any]:
        with self._disk_errors(), self._connection:
            return self._database.execute(statement, values).fetchall()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """What is written within is seen by other threads and processes as one change."""
        with self._mutex, FileLock(self.folder / "lock", poll_interval=0.01):
            yield

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Says which folder cannot be read or written, and what to do."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise self._write_error(cause_of(error)) from error
            raise self._unusable(cause_of(error)) from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what refines it
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise FetchError(f"{self.folder}: its index is damaged; remove that folder") from error
            if code in _UNWRITABLE or (code in _UNWRITABLE_IF_FULL and self._disk_is_full()):
                raise self._write_error(str(error)) from error
            raise self._unusable(str(error)) from error

    def _disk_is_full(self) -> bool:
        found = os.statvfs(self.folder)
        return found.f_bavail == 0 or found.f_files > found.f_favail == 0  # some file systems don't count inodes

    def _write_error(self, cause: str) -> CacheWriteError:
        return CacheWriteError(
            f"{self.folder}: nothing can be written ({cause}); free some space, lower data.cache_bytes, or set "
            "data.cache_path to another disk"
        )

    def _unusable(self, cause: str) -> FetchError:
        return FetchError(
            f"{self.folder} cannot be used ({cause}); check its disk and permissions, or set data.cache_path"
        )


class Download:
    """A shard on its way into the cache. A context manager: leaving it without `finish` gives up name and room."""

    def __init__(self, cache: ShardCache, sha256: str) -> None:
        """Called with the cache's lock held, so that nobody takes the new file for a dead download's."""
        self._cache, self._sha256, self._done = cache, sha256, False
        path = cache._part(sha256)
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb", 0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)  # until it is closed: this process is alive
        except BaseException:
            self._file.close()
            path.unlink()
            raise

    def write(self, data: Any) -> None:
        """Appends bytes. Raises: CacheWriteError if the disk is full; FetchError if it fails."""
        left = memoryview(data).cast("B")
        with self._cache._disk_errors():
            while left:
                left = left[self._file.write(left) :]

    def restart(self) -> None:
        """Drops what was written so far."""
        self._file.seek(0)
        self._file.truncate()

    def finish(self) -> None:
        """Gives the shard its name; the caller has verified what was written."""
        self._cache._finish(self._sha256)
        self._done = True

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._done:
                self._cache._abandon(self._sha256)
        finally:
            self._file.close()
