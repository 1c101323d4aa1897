"""The manifest of a data folder: which shards it has, what is in them, and a hash that finds any change of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.addresses import is_remote
from pipeline.errors import InputError, StorageError
from pipeline.parquet import Compression
from pipeline.schema import FORMAT_VERSION, LogFormat
from pipeline.shards.durable import write_atomically
from pipeline.shards.remote import RemoteFolder

MANIFEST = "manifest.json"
_CHECKSUMS = "row_group_crc32"
"""Beside the shards, by path, because earlier versions refuse a shard with a field that they do not know."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a split, as the manifest lists it."""

    path: str
    """Relative to the data folder, e.g. `train/part-00000.parquet`."""
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    """Rows of each row group, in order."""
    row_group_bytes: tuple[int, ...]
    """Bytes of each row group, in order, the first after the four that open the file: with these nobody has to trust
    the file's footer, which carries no checksum."""
    row_group_crc32: tuple[int, ...] = ()
    """CRC-32 of the bytes of each row group, in order, so that a reader notices one that is another's; () for a shard
    that an earlier version wrote."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split, in row order."""

    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class RejectsFile:
    """The lines of one source that could not be used: source, line number, reason, the line, tab separated."""

    path: str
    """Relative to the data folder."""
    lines: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data folder holds. Written last and atomically: once it is there, every shard it lists is whole."""

    folder: Path | RemoteFolder
    """The data folder; not part of what is stored."""
    format: LogFormat
    splits: Mapping[str, Split]
    """Always all three of pipeline.schema.SPLITS; a split may have no shards."""
    compression: Compression
    statistics: Mapping[str, Any]
    """See pipeline.encode.statistics."""
    rejected_rows: int
    rejects: tuple[RejectsFile, ...]
    plan: Mapping[str, Any]
    """The sources and options that this folder was made from."""

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    @property
    def root(self) -> Path:
        """The path of the data folder, which must be local."""
        assert isinstance(self.folder, Path), f"{self.folder} is not local"
        return self.folder

    @classmethod
    def load(cls, data: str | Path) -> Manifest:
        """The manifest of a data folder, a local one or a URI of one (see pipeline.shards.remote).

        Raises: InputError if `data` is not a data folder, is not finished or is of a newer version; StorageError if
        the manifest cannot be fetched or is damaged (a single changed bit is noticed).
        """
        if is_remote(data):
            return cls._fetch(RemoteFolder(str(data)))
        root = Path(data)
        try:
            text = (root / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(_why_no_data(root)) from None
        except OSError as error:
            raise StorageError(f"{root / MANIFEST} cannot be read ({error.strerror}); check its permissions") from error
        return cls._decode(root, text)

    @classmethod
    def _fetch(cls, folder: RemoteFolder) -> Manifest:
        try:
            text = folder.read(MANIFEST)
        except FileNotFoundError:
            raise InputError(
                f"{folder} is not a data folder (it has no {MANIFEST}); check the address, or upload a folder that "
                "`alphastream preprocess` wrote"
            ) from None
        return cls._decode(folder, text)

    @classmethod
    def _decode(cls, folder: Path | RemoteFolder, text: bytes) -> Manifest:
        name = f"{folder}/{MANIFEST}"
        damaged = StorageError(f"{name} is damaged; restore it from a copy or preprocess again")
        try:
            values = json.loads(text)
            version = values["format_version"]
            intact = _canonical(values) == text and values.pop("sha256") == _digest(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise damaged from None
        if not intact:
            raise damaged
        if version < FORMAT_VERSION:
            raise InputError(
                f"{name} has format version {version}, this program reads {FORMAT_VERSION}; preprocess the "
                "log again into another folder"
            )
        if version > FORMAT_VERSION:
            raise InputError(
                f"{name} has format version {version}, this program reads up to {FORMAT_VERSION}; upgrade it"
            )
        checksums = values.get(_CHECKSUMS, {})
        return cls(
            folder=folder,
            format=LogFormat.from_dict(values["format"]),
            splits={
                name: Split(shards=tuple(_shard_from(shard, checksums) for shard in shards))
                for name, shards in values["splits"].items()
            },
            compression=values["compression"],
            statistics=values["statistics"],
            rejected_rows=values["rejected_rows"],
            rejects=tuple(RejectsFile(**rejects) for rejects in values["rejects"]),
            plan=values["plan"],
        )

    def save(self) -> None:
        """Write the manifest into `root`, atomically and durably."""
        values: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "format": self.format.to_dict(),
            "compression": self.compression,
            "splits": {name: [_shard_values(shard) for shard in split.shards] for name, split in self.splits.items()},
            _CHECKSUMS: {
                shard.path: shard.row_group_crc32
                for split in self.splits.values()
                for shard in split.shards
                if shard.row_group_crc32
            },
            "statistics": self.statistics,
            "rejected_rows": self.rejected_rows,
            "rejects": [asdict(rejects) for rejects in self.rejects],
            "plan": self.plan,
        }
        values = json.loads(json.dumps(values))
        write_atomically(self.root / MANIFEST, _canonical({**values, "sha256": _digest(values)}))


def _shard_from(values: Mapping[str, Any], checksums: Mapping[str, list[int]]) -> Shard:
    lists = {name: tuple(values[name]) for name in ("row_groups", "row_group_bytes")}
    return Shard(**{**values, **lists}, row_group_crc32=tuple(checksums.get(values["path"], ())))


def _shard_values(shard: Shard) -> dict[str, Any]:
    """What the list of a split says of a shard."""
    values = asdict(shard)
    del values["row_group_crc32"]
    return values


def _canonical(values: Mapping[str, Any]) -> bytes:
    entries = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return ("{\n" + ",\n".join(entries) + "\n}\n").encode()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(values)).hexdigest()


def _why_no_data(root: Path) -> str:
    if not root.exists():
        return f"{root} does not exist; check the path, or make it with `alphastream preprocess`"
    if (root / ".work").is_dir():
        return f"{root} is not finished; run its `alphastream preprocess` command again to continue it"
    return f"{root} is not a data folder (it has no {MANIFEST}); make one with `alphastream preprocess`"
