"""Which logs a data folder has already: by name, size and time, or by how they begin if these say otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.preprocess.generations.distinct_file import read_distinct
from pipeline.schema import LogFormat
from pipeline.shards import Generation, Manifest
from pipeline.source import Beginning, Source, find_sources, read_beginning


class Earlier(NamedTuple):
    """A source of one of the folder's generations."""

    generation: int
    address: str
    size: int | None
    modified_ns: int | None
    beginning: Beginning | None
    """None if nobody has kept it, and the file is gone or not what it was."""

    def is_unchanged(self, source: Source) -> bool:
        """Whether a source is this file as it was."""
        stored = (self.address, self.size, self.modified_ns)
        return not source.is_standard_input and stored == (source.address, source.size, source.modified_ns)


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Sources by whether a folder has them."""

    new: tuple[Source, ...]
    known: tuple[tuple[Source, Earlier], ...]
    """Those that it has, each with what it was."""


def sort_sources(sources: Sequence[Source], log_format: LogFormat, earlier: Sequence[Earlier]) -> Sorted:
    """Which sources a folder has already, and which are new to it; standard input is always new.

    Raises: InputError for a source that begins as an earlier one does and is neither equal nor another: one that has
    grown, or was cut; or of which nobody can tell any more.
    """
    by_address = {(each.address, each.size, each.modified_ns): each for each in earlier}
    new, known = [], []
    doubtful = []
    for source in sources:
        same = by_address.get((source.address, source.size, source.modified_ns))
        if source.is_standard_input:
            new.append(source)
        elif same:
            known.append((source, same))
        else:
            doubtful.append(source)
    lengths = {each.beginning.length for each in earlier if each.beginning and each.beginning.is_whole}
    with ThreadPoolExecutor(16) as threads:
        beginnings = list(threads.map(lambda source: read_beginning(source, log_format, lengths), doubtful))
    for source, beginning in zip(doubtful, beginnings, strict=True):
        match = _match(source, beginning, earlier)
        if match:
            known.append((source, match))
        else:
            new.append(source)
    return Sorted(new=tuple(new), known=tuple(known))


def _match(source: Source, beginning: Beginning, earlier: Sequence[Earlier]) -> Earlier | None:
    """The earlier source that a source is. Raises: InputError as `sort_sources`."""
    for each in earlier:
        if each.beginning is None:
            if each.address == source.address:
                raise InputError(
                    f"{source.address} is in generation {each.generation} with another size or time, and nobody can "
                    "tell any more whether its rows are the same; give it another name if they are not"
                )
        elif beginning.is_same(each.beginning):
            return each
        elif beginning.begins_alike(each.beginning):
            if source.size == each.size and not beginning.is_whole and not each.beginning.is_whole:
                return each
            raise InputError(
                f"{source.address} begins with rows that generation {each.generation} has from {each.address}; append "
                "a log when it is complete, and only what the folder does not have yet"
            )
    return None


def earlier_sources(manifest: Manifest) -> list[Earlier]:
    """The sources of all generations of a local folder but standard input; reads the beginning of those that nobody
    has kept one of and that are still there, as they were."""
    kept = read_distinct(manifest)
    found: list[Earlier] = []
    for generation in manifest.generations:
        sources = generation.plan.get("sources", ())
        beginnings = generation.beginnings or (kept.beginnings if kept and generation.index == 0 else ())
        for source, stored in zip(sources, beginnings or [None] * len(sources), strict=True):
            if source["size"] is not None:
                beginning = Beginning.from_stored(stored) if stored else _still_there(source, manifest.format)
                found.append(Earlier(generation.index, **_fields(source), beginning=beginning))
    return found


def _fields(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"address": source["name"], "size": source["size"], "modified_ns": source["modified_ns"]}


def _still_there(source: Mapping[str, Any], log_format: LogFormat) -> Beginning | None:
    try:
        (now,) = find_sources([source["name"]]).sources
        if now.size == source["size"] and now.modified_ns == source["modified_ns"]:
            return read_beginning(now, log_format)
    except (InputError, OSError, ValueError):  # gone, unreachable, or a folder by now
        pass
    return None


def beginnings_of(sources: Sequence[Source], log_format: LogFormat) -> tuple[dict[str, Any] | None, ...]:
    """What is kept of how sources begin; None for standard input."""

    def read(source: Source) -> dict[str, Any] | None:
        return None if source.is_standard_input else read_beginning(source, log_format).usual().stored()

    with ThreadPoolExecutor(16) as threads:
        return tuple(threads.map(read, sources))


def shards_before(manifest: Manifest) -> dict[str, Generation]:
    """The generation of every shard, by its hash, that is long enough not to be equal to another by chance."""
    return {
        shard.sha256: generation
        for generation in manifest.generations
        for split in generation.splits.values()
        for shard in split.shards
        if shard.rows >= LEAST_ROWS
    }


LEAST_ROWS = 32
"""Of a shard that is taken for the same rows as one of equal bytes."""
