"""Where a reader's shards are opened: in a local folder, or in a cache that they are downloaded into ahead of it."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from typing import Protocol

from pipeline.errors import FetchError, InputError, StorageError, cause_of
from pipeline.reads import CLOSE_SECONDS, ReaderThreads, ReadRetries
from pipeline.shards.manifest import MANIFEST, Manifest, Shard
from pipeline.shards.page_cache import drop_files
from pipeline.shards.remote import RemoteFolder
from pipeline.shards.row_groups import file_in_memory, row_group_place
from pipeline.shards.shard_cache import CacheWriteError, Download, ShardCache
from pipeline.stages import StageTotals

DOWNLOAD_THREADS = 8
"""Downloads at a time; as many shards beyond those that a reader has asked for are fetched ahead of it."""
RETRY_SECONDS = 0.05
"""Between looks at whether there is room in the cache, or another process has downloaded a shard."""


class ShardFiles(Protocol):
    """The files of the shards of a split, each shard by its index; safe to use from several threads at once."""

    def name(self, shard: int) -> str:
        """What to call a shard in messages."""
        ...

    def open(self, shard: int, group: int, rows: int) -> FileIO:
        """A shard for reading a row group, `rows` rows of it; it may have to be waited for.

        Other bytes of the file need not be the shard's.

        Raises: OSError if it cannot be opened; FetchError if it cannot be fetched; InputError if it is larger
        than the cache.
        """
        ...

    def expect(self, shards: Sequence[int], later: Iterable[int]) -> None:
        """Takes note that `shards` are opened next, in this order, and then `later`; replaces what was said before."""
        ...

    def recheck(self, shard: int) -> bool:
        """Whether a shard in which damage was found may be whole when it is opened anew."""
        ...

    def close(self) -> None:
        """Ends what goes on in the background, but for reads that hang; an `open` that waits raises an error."""
        ...


def open_shards(
    manifest: Manifest,
    split: str,
    *,
    cache_path: str | None,
    cache_bytes: int | None,
    stages: StageTotals,
    retries: ReadRetries | None = None,
) -> ShardFiles:
    """The files of a split's shards; those of a remote folder through a cache (see `open_cache`)."""
    shards = manifest.splits[split].shards
    if isinstance(manifest.folder, Path):
        return LocalShards(manifest.folder, shards)
    return RemoteShards(manifest.folder, shards, open_cache(cache_path, cache_bytes), stages, retries)


def open_cache(cache_path: str | None, cache_bytes: int | None) -> ShardCache:
    """The cache in the folder `cache_path`, by default the user's own cache folder. Raises: as ShardCache."""
    return ShardCache(cache_folder(cache_path), cache_bytes)


def cache_folder(cache_path: str | None) -> Path:
    """`cache_path`, or else the user's own cache folder for this program.

    Raises: InputError for a home folder that does not exist.
    """
    folder = Path(cache_path or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = folder.expanduser()
    except RuntimeError as error:
        raise InputError(f"data.cache_path: {folder} has no home folder ({error}); give a path in full") from None
    return folder if cache_path else folder / "alphastream"


def check_cache(
    manifest: Manifest, *, window_groups: int, split: str, cache_path: str | None, cache_bytes: int | None
) -> None:
    """Makes sure that a cache of a given size can hold the shards that are read at a time.

    Those are the shards of a shuffle window and of the window read ahead, whichever they are: as many of the largest
    as the two have row groups. Raises: InputError naming the least size; as ShardCache.
    """
    if isinstance(manifest.folder, Path):
        return
    sizes = sorted((shard.bytes for shard in manifest.splits[split].shards), reverse=True)
    largest = max(shard.bytes for each in manifest.splits.values() for shard in each.shards)
    least = max(sum(sizes[: 2 * window_groups]), largest)
    with closing(open_cache(cache_path, cache_bytes)) as cache:
        # half of what a disk has free may be more tomorrow
        if cache_bytes is not None and cache_bytes < least:
            raise InputError(
                f"data.cache_bytes = {cache_bytes} is too little for the shards of two shuffle windows in "
                f"{cache.folder}; set data.cache_bytes to at least {least}, or lower data.shuffle_row_groups"
            )


class LocalShards:
    """Shards of a local data folder."""

    def __init__(self, root: Path, shards: Sequence[Shard]) -> None:
        self._root, self._paths = root, [root / shard.path for shard in shards]

    def name(self, shard: int) -> str:
        return str(self._paths[shard])

    def open(self, shard: int, group: int, rows: int) -> FileIO:
        del group, rows
        try:
            return self._paths[shard].open("rb", buffering=0)
        except FileNotFoundError:
            if (self._root / MANIFEST).exists():
                raise
            # nothing is damaged where the whole folder is away, such as with its disk; that may come back
            raise OSError(errno.ENODEV, f"the data folder has no {MANIFEST}: is its disk mounted?") from None

    def expect(self, shards: Sequence[int], later: Iterable[int]) -> None:
        pass

    def recheck(self, shard: int) -> bool:
        """Takes the shard out of the page cache: what is damaged there may be whole on the disk."""
        path = self._paths[shard]
        if not path.is_file():
            return False
        with suppress(OSError):
            drop_files([path])
        return True

    def close(self) -> None:
        pass


class RemoteShards:
    """Shards of a remote data folder, downloaded into `cache` before they are opened, verified, and ahead of need.

    Where the cache's disk is full or read-only, and nothing in it may go for what is needed now, row groups are read
    past it, each as it is needed; `retries` are told.

    Stage `download`: the seconds that threads spent on fetching and verifying, and the rows opened, whether their
    shard was here already or not; so rows / seconds is what downloading lets through.
    """

    def __init__(
        self,
        folder: RemoteFolder,
        shards: Sequence[Shard],
        cache: ShardCache,
        stages: StageTotals,
        retries: ReadRetries | None = None,
    ) -> None:
        self._retries = retries or ReadRetries(0.0)
        self._folder, self._shards, self._cache, self._stages = folder, shards, cache, stages
        self._pool = ReaderThreads(DOWNLOAD_THREADS, name="download")
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._wanted: list[int] = []
        self._queued: list[Future[None]] = []
        self._busy: set[int] = set()
        self._failed: dict[int, StorageError] = {}
        self._distrusted = set[int]()
        """Shards whose copy in the cache is damaged and cannot be deleted."""

    def name(self, shard: int) -> str:
        return self._folder.address_of(self._shards[shard].path)

    def open(self, shard: int, group: int, rows: int) -> FileIO:
        try:
            file = None if shard in self._distrusted else self._cached(shard)
        except CacheWriteError as error:
            file, cause = None, cause_of(error)
        else:
            cause = f"{self._cache.folder} cannot take {self.name(shard)} (its disk is full or read-only)"
        if file is None:
            text = f"{cause}; until that is over, row groups are read past the cache"
            self._retries.listen("uncached", text)
            file = self._retries.run(self.name(shard), lambda: self._past_cache(shard, group), pause=self._pause)
        self._stages.add("download", 0.0, rows)
        return file

    def _cached(self, shard: int) -> FileIO | None:
        """The shard in the cache, once it is there; None if it is larger than what the cache may take for now.

        Raises: CacheWriteError; as `open`.
        """
        listed = self._shards[shard]
        fetch = lambda: not self._take(shard) or self._fetch(shard, keep=())  # noqa: E731
        while (file := self._cache.open(listed.sha256)) is None:
            limit = self._cache.limit_bytes
            if listed.bytes > limit:
                if self._cache.given_bytes is None:
                    return None
                raise InputError(
                    f"{self.name(shard)} has {listed.bytes} bytes, and {self._cache.folder} may hold {limit}; set "
                    f"data.cache_bytes to at least {listed.bytes}, or data.cache_path to a disk with more room"
                )
            if not self._retries.run(self.name(shard), fetch, pause=self._pause, final=(CacheWriteError,)):
                self._pause(RETRY_SECONDS)
        return file

    def _past_cache(self, shard: int, group: int) -> FileIO:
        """A file with that row group alone; the whole shard where the manifest, of an earlier version, cannot tell
        whether the group is right. Raises: FetchError; StorageError.
        """
        listed, began = self._shards[shard], time.perf_counter()
        offset, size = row_group_place(listed, group) if listed.row_group_crc32 else (0, listed.bytes)
        read = lambda: self._folder.read_part(listed.path, offset=offset, size=size, of_bytes=listed.bytes)  # noqa: E731
        try:
            content = self._folder.retried(listed.path, read, pause=self._pause)
        except FileNotFoundError:
            raise self._missing_error() from None
        if not listed.row_group_crc32 and hashlib.sha256(content).hexdigest() != listed.sha256:
            raise StorageError("it differs from what the manifest says")
        file = file_in_memory(content, offset=offset, size=listed.bytes)
        self._stages.add("download", time.perf_counter() - began, 0)
        return file

    def expect(self, shards: Sequence[int], later: Iterable[int]) -> None:
        wanted = dict.fromkeys(shards)
        enough = len(wanted) + DOWNLOAD_THREADS
        for shard in later:
            if len(wanted) == enough:
                break
            wanted[shard] = None
        if list(wanted) != self._wanted:
            # Last first, so that what is needed soonest is deleted last, by this process or another.
            with suppress(CacheWriteError):  # nothing goes or comes in a cache that cannot be written
                self._cache.use(self._shards[shard].sha256 for shard in reversed(wanted))
        with self._changed:
            self._wanted = list(wanted)
            for stale in self._queued:
                stale.cancel()
            if not self._closing.is_set():
                self._queued = [self._pool.submit(self._fetch_ahead) for _ in self._missing()]

    def recheck(self, shard: int) -> bool:
        """Looks whether the copy in the cache is what was downloaded; one that is not will be downloaded again."""
        sha256 = self._shards[shard].sha256
        file = self._cache.open(sha256)
        if file is not None:
            with file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
            if found != sha256:
                try:
                    self._cache.discard(sha256)
                except CacheWriteError:
                    self._distrusted.add(shard)
        return True

    def close(self) -> None:
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy, CLOSE_SECONDS)
        self._pool.close()
        self._cache.close()

    def _missing(self) -> Iterator[int]:
        """Wanted shards that nobody downloads yet."""
        for shard in self._wanted:
            if shard not in self._busy and shard not in self._failed and self._shards[shard].sha256 not in self._cache:
                yield shard

    def _take(self, shard: int) -> bool:
        """Makes the caller the one who downloads a shard; False, after a wait, if another thread does so already."""
        with self._changed:
            if self._closing.is_set():
                raise CancelledError
            if shard in self._failed:
                raise self._failed[shard]
            if shard in self._busy:
                self._changed.wait()
                return False
            self._busy.add(shard)
            return True

    def _fetch_ahead(self) -> None:
        """Downloads the first of the wanted shards that is missing, if there is room."""
        with self._changed:
            shard = next(self._missing(), None)
            if shard is None or self._closing.is_set():
                return
            self._busy.add(shard)
            sooner = self._wanted[: self._wanted.index(shard)]
        with suppress(StorageError, CancelledError):  # who opens the shard tries again and tells
            self._fetch(shard, keep={self._shards[other].sha256 for other in sooner})

    def _fetch(self, shard: int, *, keep: Collection[str]) -> bool:
        """Downloads a shard that `_busy` holds; False if there was nothing to do, or no room beside `keep`."""
        try:
            return self._download_into_cache(shard, keep)
        except FetchError:
            raise
        except StorageError as error:
            self._failed[shard] = error
            raise
        finally:
            with self._changed:
                self._busy.discard(shard)
                self._changed.notify_all()

    def _download_into_cache(self, shard: int, keep: Collection[str]) -> bool:
        """As `_fetch`. Where a disk is full that said it had room, shards give way, and it is tried once more."""
        listed, tried = self._shards[shard], False
        while True:
            download = self._cache.begin(listed.sha256, listed.bytes, keep=keep)
            if download is None:
                return False
            try:
                with download:
                    self._download(shard, download)
                    download.finish()
                return True
            except CacheWriteError:
                if tried or not self._cache.give_way(listed.bytes, keep=keep):
                    raise
                tried = True

    def _download(self, shard: int, download: Download) -> None:
        """Writes a shard, a second time if it is not what the manifest lists. Raises: FetchError, StorageError."""
        path = self._shards[shard].path
        problem = None
        for _ in range(2):
            download.restart()
            try:
                problem = self._folder.retried(path, lambda: self._copy(shard, download), pause=self._pause)
            except FileNotFoundError:
                raise self._missing_error() from None
            if problem is None:
                return
        raise StorageError(f"{problem}, also when fetched again; upload it anew")

    def _missing_error(self) -> StorageError:
        """What a shard that is missing means: whether it is the only thing that is. Raises: FetchError."""
        try:
            self._folder.stamp(MANIFEST)
        except FileNotFoundError:
            return FetchError(f"{self._folder} has no {MANIFEST} any more; check its address")
        return StorageError("it is missing")

    def _copy(self, shard: int, download: Download) -> str | None:
        """Writes a shard; what is wrong with it, or None."""
        listed = self._shards[shard]
        digest, size = hashlib.sha256(), 0
        start = time.perf_counter()
        download.restart()
        for chunk in self._folder.chunks(listed.path):
            if self._closing.is_set():
                raise CancelledError
            size += chunk.size
            if size > listed.bytes:
                break
            digest.update(chunk)
            download.write(chunk)
        self._stages.add("download", time.perf_counter() - start, 0)
        if size != listed.bytes:
            found = f"more than {listed.bytes}" if size > listed.bytes else size
            return f"it has {found} bytes instead of {listed.bytes}"
        return None if digest.hexdigest() == listed.sha256 else "it differs from what the manifest says"

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise CancelledError
