"""Checkpoints of a line of history that was left: set aside under a name that nobody continues from, then deleted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pipeline.shards import sync_folder

_SET_ASIDE = "left-"
_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


def set_aside(run: str | Path, *, after: int) -> list[str]:
    """Renames the checkpoints of `run` beyond step `after` to `left-step-...`; returns their names until then, newest
    first.

    One that was set aside before under the same name is deleted for it. Once this has returned, `after` is the newest
    step to continue from.
    """
    folder = Path(run) / "checkpoints"
    later = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) > after
    )[::-1]
    for path in later:
        aside = path.with_name(f"{_SET_ASIDE}{path.name}")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    if later:
        sync_folder(folder)
    return [path.name for path in later]


def delete_set_aside(run: str | Path) -> None:
    """Deletes what `set_aside` renamed: for when the new line of history has a checkpoint of its own."""
    for path in (Path(run) / "checkpoints").glob(f"{_SET_ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)
