"""The verbs on logs and shards: sample, preprocess, inspect, verify."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipeline.addresses import is_remote, shown_path, without_secrets
from pipeline.errors import InputError
from pipeline.preprocess import PreprocessConfig
from pipeline.sample import SampleConfig
from trainer.cli.arguments import parse_arguments
from trainer.cli.data_progress import MEGABYTE, make_data, make_sample
from trainer.cli.tables import cell_text, print_table
from trainer.console import Console

if TYPE_CHECKING:
    from pipeline.preprocess import Forecast
    from pipeline.shards import Generation, VerifyProgress

EXIT_DAMAGED = 74


@dataclass(frozen=True, kw_only=True)
class SampleArguments(SampleConfig):
    """Write Criteo-shaped click logs whose best possible loss is known.

    Example: alphastream sample logs --rows 300000 --days 3
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write the days to; made if it is missing."""


def sample_verb(arguments: list[str]) -> int:
    """`alphastream sample OUT`."""
    given = parse_arguments(SampleArguments, arguments, "sample")
    if what := _is_ours(given.out):
        raise InputError(f"{given.out} is a {what}; give another OUT for the sample")
    make_sample(given, console=Console())
    return 0


def _is_ours(path: Path) -> str | None:
    """What a folder is that preprocess or train wrote."""
    kinds = {"manifest.json": "data folder", "steps.jsonl": "run directory"}
    try:
        return next((what for file, what in kinds.items() if (path / file).is_file()), None)
    except (OSError, ValueError):  # a name that cannot be one: who opens it says so
        return None


@dataclass(frozen=True, kw_only=True)
class PreprocessArguments(PreprocessConfig):
    """Turn log files into a data folder of Parquet shards; run again to continue after an interruption.

    Example: alphastream preprocess logs/day_*.tsv.gz --out DATA
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC...", help_behavior_hint="(required)")
    ]
    """Log files, folders, patterns or URIs (s3://, gs://, hdfs://), in the order of time; those of a folder or pattern
    are put in natural order. Plain, gzip, zstd, bzip2 or xz; - reads standard input."""
    named: tyro.conf.Suppress[frozenset[str]] = frozenset()
    dry_run: bool = False
    """Only say what it would take: plan, disk, and time from a measured second of work."""
    json: bool = False
    """What came of it (an error too) as one JSON object on standard output; progress as one a second on standard
    error."""


def preprocess_verb(arguments: list[str]) -> int:
    """`alphastream preprocess SRC... --out DATA`."""
    given = parse_arguments(PreprocessArguments, arguments, "preprocess")
    given = replace(given, named=_named(arguments))
    for source in given.sources:
        if _is_ours(Path(source)) == "run directory":  # others write a manifest.json beside their logs
            raise InputError(f"{source} is a run directory, whose files are not logs; name the log files themselves")
    if given.dry_run:
        from pipeline.preprocess import forecast

        expected = forecast(given)
        if given.json:
            values = asdict(expected)
            del values["described"]
            print(json.dumps(values))
        else:
            _print_forecast(expected, given.rows_per_shard)
        return 0
    summary = make_data(given, console=Console(), as_json=given.json)
    if given.json:
        from pipeline.shards import files_of, sampling_of, warnings_of, warnings_of_addition

        manifest = summary.manifest
        values = {
            "data": shown_path(given.out),
            "nothing_to_do": summary.nothing_to_do,
            "generations": len(manifest.generations),
            "added": None if summary.added is None else _generation_values(summary.added),
            "rows": summary.rows,
            "rejected_rows": manifest.rejected_rows,
            "splits": {name: split.rows for name, split in manifest.splits.items()},
            "files": files_of(manifest),
            "warnings": [*summary.notices, *warnings_of(manifest), *warnings_of_addition(manifest, summary.added)],
            "resumed_rows": summary.resumed_rows,
            **sampling_of(manifest),
            "seconds": summary.seconds,
        }
        print(json.dumps(values))
    return 0


def _generation_values(generation: Generation) -> dict[str, Any]:
    return {
        "generation": generation.index,
        "rows": generation.rows,
        "rejected_rows": generation.rejected_rows,
        "splits": {name: split.rows for name, split in generation.splits.items()},
    }


def _named(arguments: list[str]) -> frozenset[str]:
    """The options that were given, whatever their values."""
    options = (text.partition("=")[0] for text in arguments if text.startswith("--"))
    return frozenset(option.removeprefix("--").replace("-", "_") for option in options)


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Rows, splits, label rate, missing rates and sizes of a data folder.

    Example: alphastream inspect DATA
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Data folder that `alphastream preprocess` wrote, or a URI of one (s3://, gs://, hdfs://, file://)."""
    json: bool = False
    """One JSON object instead of tables."""


def inspect_verb(arguments: list[str]) -> int:
    """`alphastream inspect DATA`."""
    given = parse_arguments(InspectArguments, arguments, "inspect")
    from pipeline.shards import inspect_data

    overview = asdict(inspect_data(given.data))
    described = overview.pop("described")
    if given.json:
        print(json.dumps(overview))
        return 0
    _print_values(overview["data"][0])
    _print_rows(overview["splits"])
    if len(overview["generations"]) > 1:
        _print_rows([{**row, "created": _time(row["created"])} for row in overview["generations"]])
    integers = [row for row in overview["columns"] if row["buckets"] is None]
    categories = [_with_bounds(row) for row in overview["columns"] if row["buckets"] is not None]
    _print_rows(integers, without=("distinct", "buckets", "collision_rate"))
    _print_rows(categories, without=("minimum", "maximum", "mean"))
    print(*described, sep="\n")
    for text in overview["warnings"]:
        Console().warn(text)
    return 0


def _time(seconds: float | None) -> str:
    """A moment on this machine's clock."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _with_bounds(column: dict[str, Any]) -> dict[str, Any]:
    """A row of a table, with `5 to 8` for a number of which only bounds are known."""
    from pipeline.shards import AT_LEAST, AT_MOST, bounds_of

    row = {name: value for name, value in column.items() if not name.endswith((AT_LEAST, AT_MOST))}
    for name in ("distinct", "collision_rate"):
        if row[name] is None:
            row[name] = " to ".join(map(cell_text, bounds_of(column, name)))
    return row


def _print_rows(rows: list[dict[str, Any]], *, without: tuple[str, ...] = ()) -> None:
    """One table, if there are rows, without the columns that do not apply to them."""
    if rows:
        keys = [key for key in rows[0] if key not in without]
        print_table([key.replace("_", " ") for key in keys], [[cell_text(row[key]) for key in keys] for row in rows])


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """Re-hash a data folder's shards or a run's checkpoints; exit with 74 if something is damaged.

    Example: alphastream verify DATA
    """

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA|RUN")]
    """Data folder or a URI of one (every shard is fetched, none stored), or run directory."""
    json: bool = False
    """One JSON object instead of sentences."""


def verify_verb(arguments: list[str]) -> int:
    """`alphastream verify DATA|RUN`."""
    given = parse_arguments(VerifyArguments, arguments, "verify")
    from pipeline.shards import MANIFEST

    path = Path(given.path)
    if is_remote(given.path) or (path / MANIFEST).exists() or (path / ".work").exists():
        whole = _verify_data(given.path, given.json)
    elif (path / "checkpoints").exists() or (path / "steps.jsonl").exists():
        whole = _verify_run(path, given.json)
    else:
        what = "has neither manifest.json nor checkpoints" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give a data folder or a run directory")
    return 0 if whole else EXIT_DAMAGED


def _verify_data(data: str, as_json: bool) -> bool:
    from pipeline.shards import verify_data

    with Console().progress("verify", None, unit="MB") as line:

        def show(progress: VerifyProgress) -> None:
            line.total = progress.total_bytes / MEGABYTE
            line.update(progress.bytes / MEGABYTE, f"{progress.damaged} damaged")

        report = verify_data(data, report=show)
    found, shards, data = report.lines(), len(report.shards), without_secrets(data)
    if report.whole:
        end = f"all {shards} shards are whole ({report.rows:,} rows)"
    else:
        readable = f"{report.readable_rows:,} of {report.rows:,} rows can be read"
        if is_remote(data):  # a remote shard is verified as it is downloaded, so training skips a damaged one whole
            rows = sum(each.shard.rows for each in report.shards if each.whole)
            readable = f"{rows:,} of {report.rows:,} rows are in the others"
        end = (
            f"{len(report.damaged)} of {shards} shards are damaged; {readable}; restore them, preprocess again, or "
            "train with data.damaged = 'skip'"
        )
    if as_json:
        rows = {"rows": report.rows, "readable_rows": report.readable_rows}
        print(json.dumps({"path": str(data), "whole": report.whole, "shards": shards, **rows, "found": found}))
    else:
        print(*found, f"{data}: {end}", sep="\n")
    return report.whole


def _verify_run(run: Path, as_json: bool) -> bool:
    from trainer.records import verify_checkpoints

    checkpoints = list(verify_checkpoints(run))
    found = [f"{health.path.name}: {health.damage}" for health in checkpoints if health.damage is not None]
    whole = [health for health in checkpoints if health.damage is None]
    if not checkpoints:
        end = "no checkpoint yet; training begins at step 0"
    elif whole:
        end = f"can be resumed from step {whole[0].step:,}"
    else:
        end = "no checkpoint is whole; it cannot be resumed"
    if as_json:
        resumable = {"checkpoints": len(checkpoints), "resume_step": whole[0].step if whole else None}
        print(json.dumps({"path": str(run), "whole": not found, **resumable, "found": found}))
    else:
        print(*(f"{each.path.name}: {each.damage or 'whole'}" for each in checkpoints), f"{run}: {end}", sep="\n")
    return not found


def _print_forecast(expected: Forecast, rows_per_shard: int) -> None:
    first, others = expected.sources[0], len(expected.sources) - 1
    splits = ", ".join(f"{name} {rows:,}" for name, rows in expected.splits.items() if rows)
    megabytes, free = expected.disk_bytes / MEGABYTE, expected.free_bytes / MEGABYTE
    values = {
        "sources": f"{first}{f' and {others} more' if others else ''}, {expected.source_bytes / MEGABYTE:,.1f} MB",
        "rows": f"about {expected.rows:,} (split {expected.split}: {splits})",
        "shards": f"about {expected.shards:,} of up to {rows_per_shard:,} rows",
        "disk": f"about {megabytes:,.1f} MB; {free:,.0f} MB are free",
        "time": f"about {timedelta(seconds=math.ceil(expected.seconds))}",
        "speed": f"about {expected.rows_per_second:,.0f} rows/s on {expected.workers} workers",
        "rejected": f"{expected.rejected_share:.3%} of the lines read for this",
    }
    for name, value in values.items():
        print(f"{name:<8}  {value}")
    print(*expected.described, sep="\n")
    for text in expected.notices:
        Console().warn(text)
    if megabytes > free:
        Console().warn(f"the shards would need {megabytes:,.0f} MB, and {free:,.0f} MB are free")


def _print_values(values: dict[str, Any]) -> None:
    print_table(("", ""), [(key.replace("_", " "), cell_text(value)) for key, value in values.items()])
