"""The manifest of a data folder: which shards it has, what is in them, and a hash that finds any change of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.addresses import is_remote
from pipeline.errors import InputError, StorageError
from pipeline.parquet import Compression
from pipeline.schema import APPENDED_FORMAT_VERSION, FORMAT_VERSION, SPLITS, LogFormat
from pipeline.shards.durable import write_atomically
from pipeline.shards.remote import RemoteFolder

MANIFEST = "manifest.json"
KEEP_NEGATIVES = "keep_negatives"
"""Key of a plan: the share of the training rows of label 0 that were kept; not there if all were."""
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
class Generation:
    """What one `preprocess` command added to a data folder; what later ones add leaves it as it is."""

    index: int
    """Counted from 0, which made the folder."""
    splits: Mapping[str, Split]
    """Always all three of pipeline.schema.SPLITS."""
    statistics: Mapping[str, Any]
    """Of the rows of this generation alone; see pipeline.encode.statistics."""
    total: Mapping[str, Any]
    """The same of all rows of the folder up to this generation; see pipeline.encode.merging."""
    rejected_rows: int
    rejects: tuple[RejectsFile, ...]
    plan: Mapping[str, Any]
    """The sources and options that this generation was made from."""
    beginnings: tuple[Mapping[str, Any] | None, ...] = ()
    """How each of the plan's sources begins (see Beginning.stored), by which a log that is given again is known; None
    for standard input, () if nobody knows."""
    created: float | None = None
    """When it was added (Unix time in seconds); not known of generation 0, whose manifest is a function of its
    sources."""

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())


@dataclass(frozen=True, kw_only=True)
class DistinctFile:
    """The HyperLogLog registers of a folder that was appended to: what the next generation's are merged into."""

    path: str
    """Relative to the data folder."""
    sha256: str
    since: int
    """The generation from which on they have counted; more than 0 if those of earlier ones were not kept or lost."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data folder holds. Written last and atomically: once it is there, every shard it lists is whole.

    A folder that was never appended to is stored as ever (format version 2), so that earlier versions read it. One
    that was is stored as the list of its generations (format version 3), which earlier versions refuse: they would
    describe it by the sources of its first generation alone.
    """

    folder: Path | RemoteFolder
    """The data folder; not part of what is stored."""
    format: LogFormat
    splits: Mapping[str, Split]
    """Always all three of pipeline.schema.SPLITS, each with the shards of all generations in their order; a split may
    have no shards."""
    compression: Compression
    statistics: Mapping[str, Any]
    """Of all rows. See pipeline.encode.statistics; of a folder that was appended to pipeline.encode.merging."""
    rejected_rows: int
    rejects: tuple[RejectsFile, ...]
    plan: Mapping[str, Any]
    """The sources and options that generation 0 was made from."""
    listed: tuple[Generation, ...] = ()
    """Every generation of a folder that was appended to; () for one that never was."""
    distinct: DistinctFile | None = None
    """Of a folder that was appended to."""

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    @property
    def negatives_kept(self) -> float:
        """The share of the training rows of label 0 that were kept, in every generation; 1: all were."""
        return self.plan.get(KEEP_NEGATIVES, 1.0)

    @property
    def generations(self) -> tuple[Generation, ...]:
        """What the folder was made from, one command after another; generation 0 alone if it was never appended to."""
        if self.listed:
            return self.listed
        return (
            Generation(
                index=0,
                splits=self.splits,
                statistics=self.statistics,
                total=self.statistics,
                rejected_rows=self.rejected_rows,
                rejects=self.rejects,
                plan=self.plan,
            ),
        )

    def upto(self, generations: int) -> Manifest:
        """The folder as it was when it had its first `generations` generations, 1 or more: for a run that began then.

        Raises: InputError if it has fewer.
        """
        assert generations >= 1, f"{generations} generations"
        found = self.generations
        if generations > len(found):
            raise InputError(
                f"{self.folder} has {len(found)} of the {generations} generations that are asked for; restore the "
                f"{MANIFEST} that lists them, with their shards"
            )
        if generations == len(found):
            return self
        return self._of(found[:generations], distinct=None)

    def with_generation(
        self,
        generation: Generation,
        distinct: DistinctFile | None,
        *,
        beginnings: Sequence[Mapping[str, Any] | None] = (),
    ) -> Manifest:
        """The folder with one generation more, the next; `beginnings` are those of generation 0, for which the manifest
        of a folder that was never appended to has no place."""
        assert generation.index == len(self.generations), generation.index
        earlier = self.listed or (replace(self.generations[0], beginnings=tuple(beginnings)),)
        return self._of((*earlier, generation), distinct)

    def _of(self, generations: tuple[Generation, ...], distinct: DistinctFile | None) -> Manifest:
        values = _union(generations)
        return Manifest(
            folder=self.folder, format=self.format, compression=self.compression, **values, distinct=distinct
        )

    @property
    def paths(self) -> frozenset[str]:
        """Of all shards, relative to the data folder."""
        return frozenset(shard.path for split in self.splits.values() for shard in split.shards)

    @property
    def root(self) -> Path:
        """The path of the data folder, which must be local."""
        assert isinstance(self.folder, Path), f"{self.folder} is not local"
        return self.folder

    def stamp(self) -> object:
        """What is another once the manifest where this one lies was replaced. Raises: OSError if there is none."""
        if not isinstance(self.folder, Path):
            return self.folder.stamp(MANIFEST)
        found = (self.folder / MANIFEST).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

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
        if version > APPENDED_FORMAT_VERSION:
            raise InputError(
                f"{name} has format version {version}, this program reads up to {APPENDED_FORMAT_VERSION}; upgrade it"
            )
        described = {"folder": folder, "format": LogFormat.from_dict(values["format"])}
        described["compression"] = values["compression"]
        if version == APPENDED_FORMAT_VERSION:
            listed = tuple(_generation_from(index, each) for index, each in enumerate(values["generations"]))
            distinct = DistinctFile(**values["distinct"]) if values["distinct"] else None
            return cls(**described, **_union(listed), distinct=distinct)
        return cls(**described, **_contents_from(values), statistics=values["statistics"])

    def save(self) -> None:
        """Write the manifest into `root`, atomically and durably."""
        values: dict[str, Any] = {
            "format_version": APPENDED_FORMAT_VERSION if self.listed else FORMAT_VERSION,
            "format": self.format.to_dict(),
            "compression": self.compression,
        }
        if self.listed:
            values["generations"] = [_generation_values(each) for each in self.listed]
            values["distinct"] = asdict(self.distinct) if self.distinct else None
        else:
            values |= _content_values(self.generations[0])
        values = json.loads(json.dumps(values))
        write_atomically(self.root / MANIFEST, _canonical({**values, "sha256": _digest(values)}))


def is_data_folder(name: str) -> bool:
    """Whether a manifest lies in the folder of this path or URI; what is no folder, such as a log, is none.

    Raises: InputError for a URI that pyarrow.fs does not understand; FetchError if it cannot be reached.
    """
    if not is_remote(name):
        return (Path(name) / MANIFEST).is_file()
    folder = RemoteFolder(name)
    try:
        return folder.is_folder() and folder.stamp(MANIFEST) is not None
    except FileNotFoundError:
        return False


def _union(generations: tuple[Generation, ...]) -> dict[str, Any]:
    """The fields of the manifest of a folder that has these generations."""
    return {
        "splits": {
            name: Split(shards=tuple(shard for each in generations for shard in each.splits[name].shards))
            for name in SPLITS
        },
        "statistics": generations[-1].total,
        "rejected_rows": sum(each.rejected_rows for each in generations),
        "rejects": tuple(file for each in generations for file in each.rejects),
        "plan": generations[0].plan,
        "listed": generations if len(generations) > 1 else (),
    }


def _content_values(generation: Generation) -> dict[str, Any]:
    """What is stored of a generation's files, statistics and plan."""
    return {
        "splits": {name: [_shard_values(shard) for shard in split.shards] for name, split in generation.splits.items()},
        _CHECKSUMS: {
            shard.path: shard.row_group_crc32
            for split in generation.splits.values()
            for shard in split.shards
            if shard.row_group_crc32
        },
        "statistics": generation.statistics,
        "rejected_rows": generation.rejected_rows,
        "rejects": [asdict(rejects) for rejects in generation.rejects],
        "plan": generation.plan,
    }


def _contents_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a generation and the manifest of a folder with one have in common, without the statistics."""
    checksums = values.get(_CHECKSUMS, {})
    return {
        "splits": {
            name: Split(shards=tuple(_shard_from(shard, checksums) for shard in shards))
            for name, shards in values["splits"].items()
        },
        "rejected_rows": values["rejected_rows"],
        "rejects": tuple(RejectsFile(**rejects) for rejects in values["rejects"]),
        "plan": values["plan"],
    }


_OWN = ("statistics", "total", "beginnings", "created")


def _generation_values(generation: Generation) -> dict[str, Any]:
    return _content_values(generation) | {name: getattr(generation, name) for name in _OWN}


def _generation_from(index: int, values: Mapping[str, Any]) -> Generation:
    own = {name: values[name] for name in _OWN}
    own["beginnings"] = tuple(own["beginnings"])
    return Generation(index=index, **_contents_from(values), **own)


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
