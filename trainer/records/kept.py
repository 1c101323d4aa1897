"""Which checkpoints a run keeps: their names, newest first, and how those that are not wanted any more go."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.shards import sync_folder

_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


def listed(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of all finished checkpoints, newest first; a replaced one comes after its successor."""
    if not folder.is_dir():
        return []
    matches = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    matches.sort(key=lambda pair: (-int(pair[0][1]), pair[0][2] is not None))
    return [(int(match[1]), path) for match, path in matches]


def final_of(run: str | Path, step: int) -> Path:
    """The folder of the run's checkpoint of `step`."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def partial_of(final: Path) -> Path:
    """The name of a checkpoint that is being written, which nobody lists."""
    return final.with_name(f".partial-{final.name}")


def replaced_by(final: Path) -> Path:
    """The name of the checkpoint that had the name `final` until another one of its step came."""
    return final.with_name(f"{final.name}.replaced")


def sweep(folder: Path) -> None:
    """Deletes what unfinished saves and deletions left, as far as it can be deleted."""
    for left_over in folder.glob(".partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def begin(partial: Path) -> None:
    """Makes the folder that a checkpoint is written into, and room around it; raises OSError."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    sweep(partial.parent)
    partial.mkdir()


def publish(partial: Path, final: Path) -> None:
    """Gives the finished folder its name. A folder that has it already stays listed until the new one is."""
    replaced = replaced_by(final)
    if final.exists():
        if replaced.exists():
            remove(replaced)
        final.rename(replaced)
    partial.rename(final)
    sync_folder(final.parent)


def remove(checkpoint: Path) -> None:
    """Deletes a finished folder, which loses its name first: half a checkpoint is never listed."""
    nameless = checkpoint.with_name(f".partial-removed-{checkpoint.name}")
    checkpoint.rename(nameless)
    shutil.rmtree(nameless)


def prune(
    folder: Path,
    step: int,
    *,
    keep: int,
    best_step: int | None = None,
    not_pruned: Callable[[OSError], None] | None = None,
) -> None:
    """Deletes what the checkpoint of `step` makes superfluous: the one that it replaced, those older than the `keep`
    newest, and leftovers. Those of later steps stay, and of all the newest that is no later than `best_step`.

    `not_pruned` is told of the first that cannot be deleted, once all others are gone; without it that is raised.
    """
    try:
        _prune(folder, step, keep, best_step)
    except OSError as error:
        if not_pruned is None:
            raise
        not_pruned(error)


def _prune(folder: Path, step: int, keep: int, best_step: int | None) -> None:
    errors: list[OSError] = []
    for path in _superfluous(folder, step, keep, best_step):
        try:
            remove(path)
        except OSError as error:
            errors.append(error)
    sweep(folder)
    if errors:
        raise errors[0]


def _superfluous(folder: Path, step: int, keep: int, best_step: int | None) -> Iterator[Path]:
    yield from (path for found, path in listed(folder) if found == step and path.suffix)
    best = next((path for found, path in listed(folder) if best_step is not None and found <= best_step), None)
    yield from (path for path in [path for found, path in listed(folder) if found < step][keep - 1 :] if path != best)


def held_bytes(run: Path) -> int:
    """Bytes of all that lies among the checkpoints of the run, leftovers included."""
    return folder_bytes(run / "checkpoints")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, such as a checkpoint; what disappears meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found = path.stat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
