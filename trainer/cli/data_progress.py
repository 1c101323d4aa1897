"""Making logs and shards with progress on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.addresses import shown_path
from pipeline.preprocess import PreprocessConfig
from pipeline.sample import SampleConfig

if TYPE_CHECKING:
    from pipeline.preprocess import Plan, Progress, Summary
    from trainer.console import Console, ProgressLine

MEGABYTE = 1_000_000
JSON_LINE_SECONDS = 1.0
"""Progress for machines: one line every so many seconds."""


def make_data(config: PreprocessConfig, *, console: Console, as_json: bool = False) -> Summary:
    """`preprocess` with a progress line; before it which files train, validate and test, after it what the folder holds
    and what is odd about it.

    `as_json`: the files and the progress as JSON objects instead, one a line on standard error, and nothing said at
    the end.
    """
    from pipeline.preprocess import preprocess
    from pipeline.shards import warnings_of, warnings_of_addition

    if as_json:
        return preprocess(config, announce=_json_plan, report=_json_lines(), warn=_json_warning)

    def announce(plan: Plan) -> None:
        for text in plan.notices:
            console.warn(text)
        for text in plan.described:
            console.say(text)

    line: ProgressLine | None = None

    def report(progress: Progress) -> None:
        nonlocal line
        if line is None:
            total = None if progress.total_bytes is None else progress.total_bytes / MEGABYTE
            line = console.progress("preprocess", total, unit="MB", start=progress.resumed_bytes / MEGABYTE)
        line.update(progress.bytes / MEGABYTE, _detail(progress))

    try:
        summary = preprocess(config, announce=announce, report=report, warn=console.warn)
    finally:
        if line is not None:
            line.close()
    console.say(_outcome(config, summary))
    manifest = summary.manifest
    rejected_rows = (summary.added or manifest).rejected_rows
    if rejected_rows:
        console.warn(
            f"{rejected_rows:,} lines were rejected; each is in {shown_path(config.out)}/rejects with its reason"
        )
    for text in (*warnings_of(manifest), *warnings_of_addition(manifest, summary.added)):
        console.warn(text)
    return summary


def _json_plan(plan: Plan) -> None:
    values = {"split": plan.split, "files": plan.files_by_split(), "warnings": plan.notices}
    sys.stderr.write(json.dumps(values) + "\n")


def _json_lines() -> Callable[[Progress], None]:
    """Prints what it is told now and then as one JSON object, for programs that watch."""
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= JSON_LINE_SECONDS:
            last = now
            speeds = ("rows_per_second", "bytes_per_second", "seconds_left")
            values = {**asdict(progress), **{name: getattr(progress, name) for name in speeds}}
            sys.stderr.write(json.dumps(values) + "\n")

    return report


def _json_warning(text: str) -> None:
    sys.stderr.write(json.dumps({"warning": text}) + "\n")


def _detail(progress: Progress) -> str:
    if progress.stage == "counting lines":
        return "counting lines"
    speed = f"{progress.rows_per_second:,.0f} rows/s  {progress.bytes_per_second / MEGABYTE:,.0f} MB/s"
    rejected = f"  {progress.rejected_rows:,} rejected" if progress.rejected_rows else ""
    return f"{progress.rows:,} rows  {speed}{rejected}"


def _outcome(config: PreprocessConfig, summary: Summary) -> str:
    added = summary.added
    found = (added or summary.manifest).splits
    splits = ", ".join(f"{name} {split.rows:,}" for name, split in found.items() if split.rows)
    if summary.nothing_to_do:
        return f"nothing to do: {shown_path(config.out)} is complete ({summary.rows:,} rows: {splits})"
    kept, dropped = summary.manifest.negatives_kept, (added or summary.manifest).statistics.get("dropped_negatives", 0)
    left_out = f"; {dropped:,} training rows of label 0 are left out, {kept:g} of them kept" if kept < 1 else ""
    if added:
        more = f"generation {added.index} has {added.rows:,} rows ({splits})"
        return f"{shown_path(config.out)}: {more}; {summary.rows:,} rows in all{left_out}"
    return f"{shown_path(config.out)}: {summary.rows:,} rows ({splits}){left_out}"


def make_sample(config: SampleConfig, *, console: Console) -> None:
    """`write_sample` with a progress line."""
    from pipeline.sample import write_sample

    with console.progress("sample", config.rows, unit="rows") as line:
        summary = write_sample(config, progress=line.update)
    console.say(f"{config.out}: {summary}")
