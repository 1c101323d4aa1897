"""Log files → a data folder: make it, continue it after a crash, or say that there is nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from pipeline.addresses import shown_path, uri_of
from pipeline.errors import InputError, StorageError, cause_of
from pipeline.preprocess.assignment import Assignment, Progress
from pipeline.preprocess.config import Allowance, PreprocessConfig
from pipeline.preprocess.dry_run import Forecast, forecast
from pipeline.preprocess.engine import encode_parts
from pipeline.preprocess.generations import RemoteOut, already_listed, list_generation, plan_addition
from pipeline.preprocess.plan import Plan, check_same_plan
from pipeline.preprocess.ray_engine import encode_parts_on_ray
from pipeline.preprocess.workplace import APPENDING, PartRecord, Workplace
from pipeline.shards import (
    MANIFEST,
    DataReport,
    Generation,
    Manifest,
    Overview,
    VerifyProgress,
    inspect_data,
    verify_data,
)
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
    added: Generation | None = None
    """What was appended to a folder that was there."""


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
    if uri := uri_of(config.out):
        return _append_remotely(uri, config, announce=announce, report=report, warn=warn)
    call = _Call(config, began, announce or (lambda _: None), report, warn or (lambda _: None))
    try:
        return _append(call) if config.append and (config.out / MANIFEST).exists() else _make(call)
    except StorageError:
        raise
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            raise InputError(f"{error.filename}: cannot be made ({why}); give another --out") from None
        remedy = "free space or correct the permissions, then run the same command again"
        raise StorageError(f"{error.filename or config.out}: writing failed ({why}); {remedy}") from error


@dataclass(frozen=True)
class _Call:
    """The arguments of `preprocess`."""

    config: PreprocessConfig
    began: float
    """time.monotonic()."""
    announce: Callable[[Plan], None]
    report: Callable[[Progress], None] | None
    warn: Callable[[str], None]


def _make(call: _Call) -> Summary:
    """Make or continue a folder."""
    config, place = call.config, Workplace(call.config.out)
    plan = Plan.make(config)
    call.announce(plan)
    if finished := _finished(config.out, plan):
        return _nothing_to_do(finished, plan.notices, call.began)
    _make_workplace(config.out, place)
    with _locked(config.out, place.root / "lock"):
        # Another call may have finished since; only under the lock may the plan be compared and written.
        if finished := _finished(config.out, plan):
            return _nothing_to_do(finished, plan.notices, call.began)
        _begin(config, plan, place, call.warn)
        remedy = f"remove {config.out} and preprocess again"
        records, resumed_rows = _encode(call, plan, place, changed=remedy)
        manifest = list_generation(plan, place, records, None)
        place.remove()
    return _summary(call, manifest, plan, resumed_rows)


def _append(call: _Call) -> Summary:
    """Add a generation to a folder that is complete."""
    config, place = call.config, Workplace(call.config.out, APPENDING)
    with _locked(config.out, config.out / f"{APPENDING}.lock"):
        before = Manifest.load(config.out)
        if place.is_listed(before):
            place.remove()
        plan, notices = plan_addition(config, before)
        if plan is None:
            for text in notices:
                call.warn(text)
            return _nothing_to_do(before, notices, call.began)
        call.announce(plan)
        _begin_appending(plan, place, call.warn)
        records, resumed_rows = _encode(call, plan, place, changed="run the same command again")
        try:
            earlier = already_listed(plan, records, before)
        except InputError:
            place.clear()
            raise
        if earlier is not None:
            place.clear()
            call.warn(f"generation {earlier} of {config.out} has exactly these rows already")
            return _nothing_to_do(before, notices, call.began)
        manifest = list_generation(plan, place, records, before)
        place.remove()
    return _summary(call, manifest, plan, resumed_rows, added=manifest.generations[-1])


def _append_remotely(
    uri: str,
    config: PreprocessConfig,
    *,
    announce: Callable[[Plan], None] | None,
    report: Callable[[Progress], None] | None,
    warn: Callable[[str], None] | None,
) -> Summary:
    """Add a generation to a folder in an object store, or make one there."""
    if not config.append:
        raise InputError(
            f"--out {shown_path(config.out)} is not a local folder; add --append, or make one and upload it with the "
            "store's own tools"
        )
    remote, summaries = RemoteOut(uri), list[Summary]()

    def tell(plan: Plan) -> None:
        if announce:
            announce(replace(plan, notices=tuple(map(remote.shown, plan.notices))))

    def say(text: str) -> None:
        if warn:
            warn(remote.shown(text))

    def make(stand_in: Path) -> None:
        summaries.append(preprocess(replace(config, out=stand_in), announce=tell, report=report, warn=say))

    try:
        uploaded = remote.add(make)
    except (InputError, StorageError) as error:
        raise type(error)(remote.shown(str(error))) from error
    except OSError as error:
        remedy = "free space or correct the permissions, then run the same command again"
        raise StorageError(
            f"{error.filename or remote.stand_in}: writing failed ({cause_of(error)}); {remedy}"
        ) from error
    summary = summaries[0]
    return replace(
        summary,
        nothing_to_do=not uploaded,
        notices=tuple(map(remote.shown, summary.notices)),
        added=summary.manifest.generations[-1] if uploaded and summary.manifest.listed else None,
    )


def _nothing_to_do(finished: Manifest, notices: tuple[str, ...], began: float) -> Summary:
    return Summary(
        manifest=finished,
        nothing_to_do=True,
        rows=finished.rows,
        resumed_rows=finished.rows,
        seconds=time.monotonic() - began,
        notices=notices,
    )


def _summary(
    call: _Call, manifest: Manifest, plan: Plan, resumed_rows: int, added: Generation | None = None
) -> Summary:
    return Summary(
        manifest=manifest,
        nothing_to_do=False,
        rows=manifest.rows,
        resumed_rows=resumed_rows,
        seconds=time.monotonic() - call.began,
        notices=plan.notices,
        added=added,
    )


def _encode(call: _Call, plan: Plan, place: Workplace, *, changed: str) -> tuple[list[PartRecord], int]:
    """The records of all parts, in row order, and how many of their rows earlier calls had encoded.

    `changed` is what to do about a source that changed meanwhile.
    """
    config, resumed_rows = call.config, 0

    def watch(progress: Progress) -> None:
        nonlocal resumed_rows
        resumed_rows = progress.resumed_rows
        if call.report:
            call.report(progress)

    assignment = Assignment(
        plan=plan,
        place=place,
        workers=config.workers or usable_cores(),
        allowance=Allowance.parse(config.max_rejects),
        began=call.began,
    )
    records = (encode_parts_on_ray if config.engine == "ray" else encode_parts)(assignment, watch)
    for source in plan.sources:
        if source.refresh() != source:
            raise InputError(f"{source.address} changed while it was read; {changed}")
    if not any(record.rows for record in records):
        lines = sum(record.lines for record in records)
        if not lines and plan.sources[0].is_standard_input:
            raise InputError("standard input (-) is empty or closed; pipe a log into it, or name a file")
        names = ", ".join(source.address for source in plan.sources)
        raise InputError(f"{names}: no row among {lines:,} lines; name a log that has some")
    return records, resumed_rows


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
    Workplace(out).remove()
    return manifest


def _make_workplace(out: Path, place: Workplace) -> None:
    """The folders of work in progress. Raises: InputError if `out` holds something else."""
    if not place.plan_file.exists() and not (out / MANIFEST).exists():  # another call may just have finished
        strangers = sorted(child.name for child in out.iterdir()) if out.is_dir() else []
        if strangers and strangers != [place.root.name]:
            raise InputError(f"{out} is not a data folder and not empty (it holds {strangers[0]}); give another --out")
    place.make_folders()


def _locked(out: Path, file: Path) -> AcquireReturnProxy:
    try:
        return FileLock(file).acquire(blocking=False)
    except Timeout:
        raise InputError(f"{out} is being written by another command; wait for it or give another --out") from None


def _begin(config: PreprocessConfig, plan: Plan, place: Workplace, warn: Callable[[str], None]) -> None:
    """Keep the plan, or find it kept by an earlier call, with what of that call's work is still whole.

    Raises: InputError if rows of another plan are done, or if one is begun and this is to be appended to it.
    """
    before, now = _take_up(place, warn), plan.to_dict()
    if before == now:
        return
    if before is not None and config.append:
        names = ", ".join(source["name"] for source in before["sources"])
        raise InputError(
            f"{config.out} is not finished; run the `alphastream preprocess` command that began it ({names}) again, "
            "then append"
        )
    if before is not None and place.has_rows():
        check_same_plan(config.out, before, now)
    place.clear()
    place.save_plan(now)


def _begin_appending(plan: Plan, place: Workplace, warn: Callable[[str], None]) -> None:
    """The same for what is to be appended: what was begun of another addition is dropped, with a word."""
    before, now = _take_up(place, warn), plan.to_dict()
    if before == now and not plan.sources[0].is_standard_input:  # which is not to be told from another by its plan
        return
    if before is not None and before != now and place.has_rows():
        names = ", ".join(source["name"] for source in before["sources"])
        warn(f"an addition of {names} was begun and not finished; it is dropped, append it again")
    place.clear()
    place.save_plan(now)


def _take_up(place: Workplace, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The plan that is kept from an earlier call, after what of its work is damaged was forgotten."""
    place.make_folders()
    if damaged := place.discard_damaged():
        more = f" (and {len(damaged) - 1:,} more like it)" if len(damaged) > 1 else ""
        warn(f"{damaged[0]}{more}; the lines it was made from are encoded again")
    before = place.load_plan()
    if before is None and place.has_records():
        warn(f"{place.plan_file} is missing or damaged; everything is encoded again")
    return before
