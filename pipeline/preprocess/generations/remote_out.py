"""Appending to a data folder in an object store: encoded beside this user's caches, uploaded, the manifest last.

The stand-in, a local folder that is named after the address, holds the manifest and the registers of the remote folder,
which is all that a generation is made from, and the files of the new one until they are uploaded. Killed at any moment,
the same command finds there what is encoded, and uploads what the remote manifest does not list.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import InputError
from pipeline.preprocess.generations.distinct_file import FIRST, FOLDER
from pipeline.preprocess.workplace import APPENDING
from pipeline.shards import MANIFEST, Manifest, RemoteFolder, Shard, cache_folder, write_atomically

UNLISTED = f"{FOLDER}/{FIRST}"


@dataclass
class RemoteOut:
    """A remote data folder and its local stand-in.

    An object store has no locks: of two machines that append at once, one finds the other's manifest and says so,
    unless both replace it within the same moment; then the last one counts, and the other's rows are not listed.
    """

    uri: str
    folder: RemoteFolder = field(init=False)
    stand_in: Path = field(init=False)
    _manifest: bytes | None = field(init=False, default=None)
    """That of the remote folder as it was found; None if there is none yet."""

    def __post_init__(self) -> None:
        """Raises: InputError for a URI that pyarrow.fs does not understand."""
        self.folder = RemoteFolder(self.uri)
        name = hashlib.sha256(self.folder.address.encode()).hexdigest()[:16]
        self.stand_in = cache_folder(None) / "append" / name

    def add(self, make: Callable[[Path], object]) -> int:
        """Have `make` add a generation to the stand-in, and upload what the remote folder does not have: how many
        generations.

        Raises: InputError if another command uses the stand-in or has changed the remote folder meanwhile; FetchError
        if it cannot be reached; OSError if the stand-in cannot be written; whatever `make` raises.
        """
        self.stand_in.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.stand_in.with_suffix(".lock")).acquire(blocking=False)
        except Timeout:
            raise InputError(f"{self.folder} is being written by another command; wait for it") from None
        with lock:
            self._manifest = self._fetch()
            self._take_up()
            make(self.stand_in)
            return self._upload()

    def shown(self, text: str) -> str:
        """A message about the stand-in as one about the remote folder."""
        return text.replace(str(self.stand_in), str(self.folder))

    def _fetch(self) -> bytes | None:
        try:
            return self.folder.read(MANIFEST)
        except FileNotFoundError:
            return None

    def _take_up(self) -> None:
        """Make the stand-in one of the remote folder as it is, unless it is further on only."""
        if self._manifest is None:
            if (self.stand_in / MANIFEST).exists() and self._lost(Manifest.load(self.stand_in), since=0):
                self._clear()  # of a folder that was removed since
            if not (self.stand_in / MANIFEST).exists():  # and so is what was to be appended to it
                shutil.rmtree(self.stand_in / APPENDING, ignore_errors=True)
                (self.stand_in / f"{APPENDING}.lock").unlink(missing_ok=True)
            return
        theirs = Manifest.load(self.uri)
        if (self.stand_in / MANIFEST).exists():
            ours = Manifest.load(self.stand_in)
            since = len(theirs.generations)
            if _hashes(ours)[:since] == _hashes(theirs) and not self._lost(ours, since):
                return
        self._clear()
        if theirs.distinct:
            self._download(theirs.distinct.path)
        elif not theirs.listed:
            self._download(UNLISTED)
        write_atomically(self.stand_in / MANIFEST, self._manifest)

    def _download(self, name: str) -> None:
        """Fetch a file that may be missing."""
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            return
        (self.stand_in / name).parent.mkdir(exist_ok=True)
        write_atomically(self.stand_in / name, content)

    def _lost(self, ours: Manifest, since: int) -> bool:
        """Whether a shard that is still to be uploaded is not here."""
        return not all((self.stand_in / shard.path).is_file() for shard in _shards(ours, since))

    def _clear(self) -> None:
        """Remove all but what is encoded and not yet listed."""
        for child in self.stand_in.iterdir():
            if child.name == APPENDING:
                continue
            if child.is_dir():
                shutil.rmtree(child)
            else:
                child.unlink()

    def _upload(self) -> int:
        ours = Manifest.load(self.stand_in)
        since = len(Manifest.load(self.uri).generations) if self._manifest is not None else 0
        added = ours.generations[since:]
        if not added:
            return 0
        names = [shard.path for shard in _shards(ours, since)]
        names += [rejects.path for generation in added for rejects in generation.rejects]
        names.append(ours.distinct.path if ours.distinct else UNLISTED)
        for name in names:
            self.folder.write(name, self.stand_in / name)
        if self._fetch() != self._manifest:
            raise InputError(f"{self.folder} was changed by another command meanwhile; run the same command again")
        self.folder.write(MANIFEST, self.stand_in / MANIFEST)
        if self._fetch() != (self.stand_in / MANIFEST).read_bytes():
            raise InputError(f"{self.folder} was changed by another command meanwhile; run the same command again")
        for name in names[:-1]:
            (self.stand_in / name).unlink()
        return len(added)


def _shards(manifest: Manifest, since: int) -> list[Shard]:
    """Of generation `since` and later."""
    return [
        shard
        for generation in manifest.generations[since:]
        for split in generation.splits.values()
        for shard in split.shards
    ]


def _hashes(manifest: Manifest) -> list[list[str]]:
    """Of the shards of each generation."""
    return [
        [shard.path + shard.sha256 for split in generation.splits.values() for shard in split.shards]
        for generation in manifest.generations
    ]
