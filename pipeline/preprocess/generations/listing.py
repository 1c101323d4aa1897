"""Parts that are done → shards under their own names, rejects, statistics, and the manifest that lists them: last."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.encode import Counts, merged, summarize_counts
from pipeline.errors import InputError
from pipeline.preprocess.generations.already import beginnings_of, shards_before
from pipeline.preprocess.generations.distinct_file import Distinct, read_distinct, remove_outdated, write_distinct
from pipeline.preprocess.generations.merging import merge_statistics
from pipeline.preprocess.plan import Plan
from pipeline.preprocess.workplace import PartRecord, Workplace
from pipeline.schema import SPLITS, LogFormat
from pipeline.shards import Generation, Manifest, RejectsFile, Shard, Split, sync_descriptor, sync_folder
from pipeline.source import Source


def list_generation(plan: Plan, place: Workplace, records: list[PartRecord], before: Manifest | None) -> Manifest:
    """Give every shard its final name and list it: as a new folder, or as the next generation of the one `before`.

    Each step may be repeated after a crash between any two; only with the last, the manifest, is anything different.
    """
    out, index = place.out, len(before.generations) if before else 0
    prefix = _prefix(index, records)
    shards = _name_shards(place, records, prefix=prefix)
    sync_folder(out)
    counted = _count(plan.log_format, place, records)
    files: dict[str, Any] = {
        "splits": {name: Split(shards=tuple(listed)) for name, listed in shards.items()},
        "statistics": counted.statistics,
        "rejected_rows": sum(record.rejected_rows for record in records),
        "rejects": _gather_rejects(out, plan.sources, place, records, prefix=prefix),
        "plan": plan.to_dict(),
    }
    beginnings = beginnings_of(plan.sources, plan.log_format)
    if before is None:
        write_distinct(out, Distinct(registers=counted.registers, since=0, beginnings=beginnings))
        manifest = Manifest(folder=out, format=plan.log_format, compression=plan.compression, **files)
        manifest.save()
        return manifest
    kept = read_distinct(before)
    distinct = _merge_distinct(kept, counted.registers, index)
    uncounted = before.upto(distinct.since).statistics if distinct.since else None
    total = merge_statistics(plan.log_format, before.statistics, counted.statistics, distinct.registers, uncounted)
    generation = Generation(index=index, total=total, beginnings=beginnings, created=time.time(), **files)
    listed = write_distinct(out, distinct, f"{prefix}values.hll")
    manifest = before.with_generation(generation, listed, beginnings=kept.beginnings if kept else ())
    manifest.save()
    remove_outdated(out, listed)
    return manifest


def already_listed(plan: Plan, records: Sequence[PartRecord], before: Manifest) -> int | None:
    """The generation that has all the rows of these parts, shard by shard.

    Raises: InputError for parts of which some are in the folder and some are not.
    """
    known = shards_before(before)
    found = [(record, known[record.sha256]) for record in records if record.rows and record.sha256 in known]
    if not found:
        return None
    indices = {generation.index for _, generation in found}
    if len(found) == sum(record.rows > 0 for record in records) and len(indices) == 1:
        return indices.pop()
    record, generation = found[0]
    raise InputError(
        f"{plan.sources[record.source].address} has {record.rows:,} rows, from line {record.first_line + 1:,} on, that "
        f"generation {generation.index} of {before.folder} has already; append only what the folder does not have yet"
    )


def _prefix(index: int, records: list[PartRecord]) -> str:
    """What the names of a generation's files begin with; nothing for those of the first.

    Its number, and a digest of what is in it: of two machines that append to one remote folder at once, neither
    overwrites what the other has listed.
    """
    content = hashlib.sha256("".join(record.sha256 for record in records).encode()).hexdigest()
    return f"gen-{index:05d}-{content[:8]}-" if index else ""


def _name_shards(place: Workplace, records: list[PartRecord], *, prefix: str) -> dict[str, list[Shard]]:
    shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
    final_paths: dict[str, str] = {}
    for record in records:
        if record.rows:
            listed = shards[record.split]
            path = f"{record.split}/{prefix}part-{len(listed):05d}.parquet"
            listed.append(record.shard(path))
            final_paths[record.key] = path
    place.move_shards(final_paths)
    for name in SPLITS:
        if shards[name]:
            sync_folder(place.out / name)
    return shards


class _Counted(NamedTuple):
    statistics: dict[str, Any]
    registers: np.ndarray
    """uint8 (S, M), over all splits."""


def _count(log_format: LogFormat, place: Workplace, records: list[PartRecord]) -> _Counted:
    """Statistics of a generation, with the counts of one part in memory at a time."""
    counts = {
        split: merged(
            log_format,
            (Counts.load(log_format, place.counts_file(record.key)) for record in records if record.split == split),
        )
        for split in SPLITS
    }
    registers = np.maximum.reduce([each.tally.registers for each in counts.values()])
    return _Counted(summarize_counts(log_format, counts), registers)


def _merge_distinct(kept: Distinct | None, registers: np.ndarray, index: int) -> Distinct:
    """The registers with those of generation `index`, or its own if there are none to merge them into."""
    if kept is None:
        return Distinct(registers=registers, since=index, beginnings=())
    return Distinct(registers=np.maximum(kept.registers, registers), since=kept.since, beginnings=())


def _gather_rejects(
    out: Path, sources: tuple[Source, ...], place: Workplace, records: list[PartRecord], *, prefix: str
) -> tuple[RejectsFile, ...]:
    """Join the rejected lines of each source in line order into one file of DATA/rejects."""
    gathered: list[RejectsFile] = []
    for index, source in enumerate(sources):
        of_source = [record for record in records if record.source == index and record.rejected_rows]
        if not of_source:
            continue
        path = Path("rejects") / f"{prefix}{index:05d}-{source.label}.tsv"
        (out / path).parent.mkdir(exist_ok=True)
        temporary = out / path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            digest = hashlib.sha256()
            for record in of_source:
                content = place.rejects_file(record.key).read_bytes()
                file.write(content)
                digest.update(content)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(out / path)
        sync_folder((out / path).parent)
        lines = sum(record.rejected_rows for record in of_source)
        gathered.append(RejectsFile(path=path.as_posix(), lines=lines, sha256=digest.hexdigest()))
    return tuple(gathered)
