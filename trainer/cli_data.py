"""The verbs on logs and shards: sample, preprocess, inspect, verify."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipeline.forecast import forecast
from pipeline.overview import inspect_data
from pipeline.preprocess import PreprocessConfig
from pipeline.sample import SampleConfig
from pipeline.verify import VerifyProgress, verify_data
from trainer.arguments import parse, print_table, shown
from trainer.console import Console
from trainer.logs import MEGABYTE, make_data, make_sample

EXIT_DAMAGED = 74


@dataclass(frozen=True, kw_only=True)
class SampleArguments(SampleConfig):
    """Write Criteo-shaped click logs whose best possible loss is known."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write the days to; made where it is missing."""


def sample_verb(arguments: list[str]) -> int:
    """`alphastream sample OUT`."""
    make_sample(parse(SampleArguments, arguments, "sample"), console=Console())
    return 0


@dataclass(frozen=True, kw_only=True)
class PreprocessArguments(PreprocessConfig):
    """Turn log files into a data folder of Parquet shards; run again to continue after an interruption."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC...", help_behavior_hint="(required)")
    ]
    """Log files, folders, patterns or URIs (s3://, gs://, hdfs://); plain, .gz or .zst; - reads standard input."""
    dry_run: bool = False
    """Only say what it would take: plan, disk, and time from a measured second of work."""
    json: bool = False
    """What came of it as one JSON object on standard output."""


def preprocess_verb(arguments: list[str]) -> int:
    """`alphastream preprocess SRC... --out DATA`."""
    given = parse(PreprocessArguments, arguments, "preprocess")
    if given.dry_run:
        values = asdict(forecast(given))
        _print_values(values, as_json=given.json)
        return 0
    summary = make_data(given, console=Console())
    if given.json:
        manifest = summary.manifest
        values = {
            "data": str(given.out),
            "nothing_to_do": summary.nothing_to_do,
            "rows": summary.rows,
            "rejected_rows": manifest.rejected_rows,
            "splits": {name: split.rows for name, split in manifest.splits.items()},
            "seconds": summary.seconds,
        }
        print(json.dumps(values))
    return 0


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Rows, splits, label rate, missing rates and sizes of a data folder."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Data folder that `alphastream preprocess` wrote."""
    json: bool = False
    """One JSON object instead of tables."""


def inspect_verb(arguments: list[str]) -> int:
    """`alphastream inspect DATA`."""
    given = parse(InspectArguments, arguments, "inspect")
    overview = asdict(inspect_data(given.data))
    if given.json:
        print(json.dumps(overview))
        return 0
    _print_values(overview["data"][0])
    for rows in (overview["splits"], overview["columns"]):
        print_table(
            [key.replace("_", " ") for key in rows[0]], [[shown(value) for value in row.values()] for row in rows]
        )
    return 0


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """Re-hash a data folder's shards or a run's checkpoints; exit with 74 where something is damaged."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA|RUN")]
    """Data folder, or run directory."""


def verify_verb(arguments: list[str]) -> int:
    """`alphastream verify DATA|RUN`."""
    path = parse(VerifyArguments, arguments, "verify").path
    whole = _verify_run(path) if (path / "checkpoints").is_dir() else _verify_data(path, Console())
    return 0 if whole else EXIT_DAMAGED


def _verify_data(data: Path, console: Console) -> bool:
    with console.progress("verify", None, unit="MB") as line:

        def show(progress: VerifyProgress) -> None:
            line.total = progress.total_bytes / MEGABYTE
            line.update(progress.bytes / MEGABYTE, f"{progress.damaged} damaged")

        report = verify_data(data, report=show)
    for sentence in report.lines():
        print(sentence)
    if report.whole:
        print(f"{data}: all {len(report.shards)} shards are whole ({report.rows:,} rows)")
    else:
        print(
            f"{data}: {len(report.damaged)} of {len(report.shards)} shards are damaged; {report.readable_rows:,} of "
            f"{report.rows:,} rows can be read; restore them, preprocess again, or train with data.damaged = 'skip'"
        )
    return report.whole


def _verify_run(run: Path) -> bool:
    from trainer.checkpoint import verify_checkpoints

    found = list(verify_checkpoints(run))
    for health in found:
        print(f"{health.path.name}: {'whole' if health.damage is None else health.damage}")
    whole = [health for health in found if health.damage is None]
    if not found:
        print(f"{run}: no checkpoint yet; training begins at step 0")
    elif whole:
        print(f"{run}: can be resumed from step {whole[0].step:,}")
    else:
        print(f"{run}: no checkpoint is whole; it cannot be resumed")
    return len(whole) == len(found)


def _print_values(values: dict[str, Any], *, as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(values))
    else:
        print_table(("", ""), [(key.replace("_", " "), shown(value)) for key, value in values.items()])
