"""Log files → a data folder: make it, continue it after a crash, or say that there is nothing to do."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from pipeline.encode import Counts, merged, summarize_counts
from pipeline.errors import InputError, StorageError
from pipeline.preprocess.assignment import Assignment, Progress
from pipeline.preprocess.config import Allowance, PreprocessConfig
from pipeline.preprocess.dry_run import Forecast, forecast
from pipeline.preprocess.engine import encode_parts
from pipeline.preprocess.plan import Plan, check_same_plan
from pipeline.preprocess.ray_engine import encode_parts_on_ray
from pipeline.preprocess.workplace import PartRecord, Workplace
from pipeline.schema import SPLITS, LogFormat
from pipeline.shards import (
    MANIFEST,
    DataReport,
    Manifest,
    Overview,
    RejectsFile,
    Shard,
    Split,
    VerifyProgress,
    inspect_data,
    sync_folder,
    verify_data,
)
from pipeline.source import Source
from pipeline.stages import usable_cores

__all__ = [
    "DataReport",
    "Forecast",
    "Overview",
    "PreprocessConfig",
    "Progress",
    "Summary",
    "VerifyProgress",
    "forecast",
    "inspect_data",
    "preprocess",
    "verify_data",
]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a call did."""

    manifest: Manifest
    nothing_to_do: bool
    """The folder was complete already, made from these sources with these options."""
    rows: int
    """Rows in the folder."""
    resumed_rows: int
    """Of these, rows that earlier calls had encoded."""
    seconds: float
    notices: tuple[str, ...]
    """What a user should know of how the sources were chosen."""


def preprocess(
    config: PreprocessConfig,
    *,
    announce: Callable[[Plan], None] | None = None,
    report: Callable[[Progress], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Summary:
    """Make or continue the data folder `config.out`; `report` is called from this thread about ten times a second.

    `announce` gets the plan before anything is written.

    The output is a pure function of the sources and of the options other than `workers` and `max_rejects`: byte
    for byte the same however often it was interrupted. `warn` is told what an earlier call had finished and is not
    whole any more, so that it is done again.
    Raises: InputError for what the user gave (sources, options, too many rejected lines, a folder made from other
    sources); StorageError if reading or writing fails. Either leaves a folder that the same command continues.
    """
    began = time.monotonic()
    plan = Plan.make(config)
    if announce:
        announce(plan)
    place = Workplace(config.out)
    try:
        if finished := _finished(config.out, plan):
            return _nothing_to_do(finished, plan, began)
        _make_workplace(config.out, place)
        with _locked(config.out, place):
            # Another call may have finished since; only under the lock may the plan be compared and written.
            if finished := _finished(config.out, plan):
                return _nothing_to_do(finished, plan, began)
            _begin(config.out, plan, place, warn or (lambda _: None))
            return _make(config, plan, place, report, began=began)
    except StorageError:
        raise
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            raise InputError(f"{error.filename}: cannot be made ({why}); give another --out") from None
        remedy = "free space or correct the permissions, then run the same command again"
        raise StorageError(f"{error.filename or config.out}: writing failed ({why}); {remedy}") from error


def _nothing_to_do(finished: Manifest, plan: Plan, began: float) -> Summary:
    return Summary(
        manifest=finished,
        nothing_to_do=True,
        rows=finished.rows,
        resumed_rows=finished.rows,
        seconds=time.monotonic() - began,
        notices=plan.notices,
    )


def _make(
    config: PreprocessConfig,
    plan: Plan,
    place: Workplace,
    report: Callable[[Progress], None] | None,
    *,
    began: float,
) -> Summary:
    resumed_rows = 0

    def watch(progress: Progress) -> None:
        nonlocal resumed_rows
        resumed_rows = progress.resumed_rows
        if report:
            report(progress)

    assignment = Assignment(
        plan=plan,
        place=place,
        workers=config.workers or usable_cores(),
        allowance=Allowance.parse(config.max_rejects),
        began=began,
    )
    records = (encode_parts_on_ray if config.engine == "ray" else encode_parts)(assignment, watch)
    for source in plan.sources:
        if source.refresh() != source:
            raise InputError(f"{source.address} changed while it was read; remove {config.out} and preprocess again")
    if not any(record.rows for record in records):
        lines = sum(record.lines for record in records)
        if not lines and plan.sources[0].is_standard_input:
            raise InputError("standard input (-) is empty or closed; pipe a log into it, or name a file")
        names = ", ".join(source.address for source in plan.sources)
        raise InputError(f"{names}: no row among {lines:,} lines; name a log that has some")
    manifest = _finish(config.out, plan, place, records)
    return Summary(
        manifest=manifest,
        nothing_to_do=False,
        rows=manifest.rows,
        resumed_rows=resumed_rows,
        seconds=time.monotonic() - began,
        notices=plan.notices,
    )


def _finished(out: Path, plan: Plan) -> Manifest | None:
    """The manifest of a folder that is complete. Raises: InputError if it was made from another plan."""
    if out.is_file():
        raise InputError(f"{out} is a file; give another --out")
    if not (out / MANIFEST).exists():
        return None
    manifest = Manifest.load(out)
    check_same_plan(out, manifest.plan, plan.to_dict())
    for split in manifest.splits.values():
        for shard in split.shards:
            if not (out / shard.path).is_file():
                raise StorageError(f"{out / shard.path} is missing; remove {out} and preprocess again")
    shutil.rmtree(Workplace(out).root, ignore_errors=True)
    return manifest


def _make_workplace(out: Path, place: Workplace) -> None:
    """The folders of work in progress. Raises: InputError if `out` holds something else."""
    if not place.plan_file.exists() and not (out / MANIFEST).exists():  # another call may just have finished
        strangers = sorted(child.name for child in out.iterdir()) if out.is_dir() else []
        if strangers and strangers != [place.root.name]:
            raise InputError(f"{out} is not a data folder and not empty (it holds {strangers[0]}); give another --out")
    place.make_folders()


def _locked(out: Path, place: Workplace) -> AcquireReturnProxy:
    try:
        return FileLock(place.root / "lock").acquire(blocking=False)
    except Timeout:
        raise InputError(f"{out} is being written by another command; wait for it or give another --out") from None


def _begin(out: Path, plan: Plan, place: Workplace, warn: Callable[[str], None]) -> None:
    """Keep the plan, or find it kept by an earlier call, with what of that call's work is still whole.

    Raises: InputError if rows of another plan are done.
    """
    place.make_folders()
    if damaged := place.discard_damaged():
        more = f" (and {len(damaged) - 1:,} more like it)" if len(damaged) > 1 else ""
        warn(f"{damaged[0]}{more}; the lines it was made from are encoded again")
    now = plan.to_dict()
    before = place.load_plan()
    if before == now:
        return
    if before is None and place.has_records():
        warn(f"{place.plan_file} is missing or damaged; everything is encoded again")
    if before is not None and place.has_rows():
        check_same_plan(out, before, now)
    place.clear()
    place.save_plan(now)


def _finish(out: Path, plan: Plan, place: Workplace, records: list[PartRecord]) -> Manifest:
    """Give every shard its final name and list it. Each step may be repeated after a crash between any two."""
    shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
    final_paths: dict[str, str] = {}
    for record in records:
        if record.rows:
            listed = shards[record.split]
            path = f"{record.split}/part-{len(listed):05d}.parquet"
            listed.append(record.shard(path))
            final_paths[record.key] = path
    place.move_shards(final_paths)
    for name in SPLITS:
        if shards[name]:
            sync_folder(out / name)
    sync_folder(out)
    manifest = Manifest(
        folder=out,
        format=plan.log_format,
        splits={name: Split(shards=tuple(listed)) for name, listed in shards.items()},
        compression=plan.compression,
        statistics=_statistics(plan.log_format, place, records),
        rejected_rows=sum(record.rejected_rows for record in records),
        rejects=_gather_rejects(out, plan.sources, place, records),
        plan=plan.to_dict(),
    )
    manifest.save()
    # What cannot be removed now, the next call removes; another one may be doing so at this moment.
    shutil.rmtree(place.root, ignore_errors=True)
    return manifest


def _statistics(log_format: LogFormat, place: Workplace, records: list[PartRecord]) -> dict[str, Any]:
    """Statistics of the whole folder, with the counts of one part in memory at a time."""
    counts = {
        split: merged(
            log_format,
            (Counts.load(log_format, place.counts_file(record.key)) for record in records if record.split == split),
        )
        for split in SPLITS
    }
    return summarize_counts(log_format, counts)


def _gather_rejects(
    out: Path, sources: tuple[Source, ...], place: Workplace, records: list[PartRecord]
) -> tuple[RejectsFile, ...]:
    """Join the rejected lines of each source in line order into one file of DATA/rejects."""
    gathered: list[RejectsFile] = []
    for index, source in enumerate(sources):
        of_source = [record for record in records if record.source == index and record.rejected_rows]
        if not of_source:
            continue
        path = Path("rejects") / f"{index:05d}-{source.label}.tsv"
        (out / path).parent.mkdir(exist_ok=True)
        temporary = out / path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            digest = hashlib.sha256()
            for record in of_source:
                content = place.rejects_file(record.key).read_bytes()
                file.write(content)
                digest.update(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out / path)
        sync_folder((out / path).parent)
        lines = sum(record.rejected_rows for record in of_source)
        gathered.append(RejectsFile(path=path.as_posix(), lines=lines, sha256=digest.hexdigest()))
    return tuple(gathered)
