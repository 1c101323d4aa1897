"""Checkpoints of a line of history that was left: set aside under a name that nobody continues from, then deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.shards import sync_folder
from trainer.records.kept import listed

_SET_ASIDE = "left-"


def set_aside(run: str | Path, *, after: int) -> list[str]:
    """Renames the checkpoints of `run` beyond step `after` to `left-step-...`; returns their names until then, newest
    first, and of two of one step the one that was replaced.

    One that was set aside before under the same name is deleted for it. Once this has returned, `after` is the newest
    step to continue from.
    """
    folder = Path(run) / "checkpoints"
    later = [path for step, path in sorted(listed(folder), reverse=True) if step > after]
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
