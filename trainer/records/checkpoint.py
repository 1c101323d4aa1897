"""Checkpoints: safetensors and JSON under a manifest of hashes, whole or not there at all."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError, StorageError, cause_of
from pipeline.shards import free_bytes
from trainer.records.best import best_evaluation
from trainer.records.content import STATE, CheckpointFile, checkpoint_files, find_damage, step_of, write_content
from trainer.records.kept import begin, final_of, folder_bytes, listed, partial_of, prune, publish, remove
from trainer.records.serialization import deserialize
from trainer.records.sharded import SaveGroup, Shares, Take, read_content, together, write_on_ranks


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint, read and verified."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """What was saved as `tensors`: file name without suffix → name → tensor."""
    state: dict[str, Any]
    """What was saved as `state`; its tensors are on the CPU."""
    damaged: tuple[str, ...] = ()
    """Newer checkpoints that were passed over: each one's name and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class CheckpointHealth:
    """What a verification found of one checkpoint."""

    path: Path
    step: int
    damage: str | None
    """None if every byte is as it was written."""


def save_checkpoint(
    run: str | Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Writes RUN/checkpoints/step-XXXXXXXX and deletes older ones beyond the `keep` newest.

    `tensors` maps a file name to its named tensors. `state` is anything `serialize` takes, tensors
    included, so `optimizer.state_dict()` of any optimizer goes in as it is.
    The folder appears under its name only when it is whole and on the disk; on any error it does not, and
    nothing older is lost. Checkpoints of later steps (of a future that was abandoned) are left alone.

    Raises: TypeError for state that has no form on disk; OSError when writing fails, a full disk included.
    """
    return write_checkpoint(run, step, checkpoint_files(tensors, state), keep=keep)


def write_checkpoint(
    run: str | Path,
    step: int,
    files: Iterable[CheckpointFile],
    *,
    keep: int,
    best_step: int | None = None,
    before_publishing: Callable[[], None] = lambda: None,
    not_pruned: Callable[[OSError], None] | None = None,
    shares: Shares | None = None,
) -> Path:
    """`save_checkpoint` of what `checkpoint_files` gave; takes no file before the one before it is written.

    Beside the `keep` newest it keeps the newest one that is no later than `best_step`.

    `before_publishing` is called when all is on disk under a name that nobody looks for. What it raises, or the
    iteration over `files`, is an error like any other: the checkpoint does not appear, and what was written goes.
    `not_pruned` is told, if older ones cannot be deleted, why; without it that is raised, though the new one is there.

    With `shares` of several ranks each of them calls it, with the files that it has; as `write_on_ranks` has it.
    """
    if shares is not None and shares.group.ranks > 1:
        return write_on_ranks(
            run,
            step,
            files,
            shares,
            keep=keep,
            best_step=best_step,
            before_publishing=before_publishing,
            not_pruned=not_pruned,
        )
    final = final_of(run, step)
    partial = partial_of(final)
    try:
        begin(partial)
        write_content(partial, step, files)
        before_publishing()
        publish(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    prune(final.parent, step, keep=keep, best_step=best_step, not_pruned=not_pruned)
    return final


def make_room(run: str | Path, needed_bytes: int) -> list[str]:
    """After a save that found no space for its `needed_bytes`: deletes the oldest checkpoints until they would fit.

    The names of those deleted. Only ones older than the newest whole one, which a resume would take, may go; it is
    verified first, and without a whole one none goes. None goes either if all that may would not make the room. Where
    the disk says that there is room already, a quota or the number of files forbids it, and so many bytes are freed.

    Raises: OSError for one that cannot be deleted.
    """
    folder = Path(run) / "checkpoints"
    found = listed(folder)
    whole = next((index for index, (_, path) in enumerate(found) if _is_whole(path)), None)
    older = [] if whole is None else [path for _, path in found[whole + 1 :]]
    free = free_bytes(folder)
    missing = needed_bytes - free if needed_bytes > free else needed_bytes
    if missing > sum(map(folder_bytes, older)):
        return []
    deleted: list[str] = []
    while missing > 0:
        path = older.pop()
        missing -= folder_bytes(path)
        remove(path)
        deleted.append(path.name)
    return deleted


def make_room_on_ranks(run: str | Path, needed_bytes: int, *, group: SaveGroup) -> list[str]:
    """`make_room`, by rank 0, for the `needed_bytes` that it gives; all ranks return, or raise, alike. Collective."""
    return together(group, lambda: make_room(run, needed_bytes) if group.rank == 0 else None)[0]


def load_latest(
    run: str | Path,
    *,
    device: torch.device | str = "cpu",
    wanted: Callable[[int], bool] = lambda step: True,
) -> Checkpoint | None:
    """The newest whole checkpoint of the run at a step that is `wanted`, its `tensors` on `device`; None without one.

    One that several ranks saved is read as if one process had: its tensors are whole.
    Raises: StorageError if there are such checkpoints and every one is damaged; InputError for one that a
    newer version of this program wrote.
    """
    return _newest_whole(run, wanted, lambda path: read_checkpoint(path, device=device, verified=True))


def load_latest_on_ranks(
    run: str | Path,
    *,
    group: SaveGroup,
    take: Take,
    device: torch.device | str = "cpu",
    wanted: Callable[[int], bool] = lambda step: True,
) -> Checkpoint | None:
    """`load_latest` on every rank of `group`, which all get the same checkpoint, each what it is to `take` of it.

    Collective. Rank 0 chooses and looks for damage; however many ranks saved it, and however many are here.
    Raises: as `load_latest` and `read_checkpoint`, on all ranks if on one; RankFailedError for other errors elsewhere.
    """

    def choose() -> list[Any] | None:
        if group.rank:
            return None
        found = _newest_whole(run, wanted, lambda path: Checkpoint(path=path, step=step_of(path), tensors={}, state={}))
        return None if found is None else [found.path.name, list(found.damaged)]

    chosen = together(group, choose)[0]
    if chosen is None:
        return None
    name, damaged = chosen
    read: list[Checkpoint] = []
    path = Path(run) / "checkpoints" / name
    together(group, lambda: read.append(read_checkpoint(path, device=device, take=take, verified=True)))
    return replace(read[0], damaged=tuple(damaged))


def read_checkpoint(
    path: Path, *, device: torch.device | str = "cpu", take: Take | None = None, verified: bool = False
) -> Checkpoint:
    """The checkpoint at `path`, its `tensors` on `device`, with what there is to `take` of it; by default all.

    `take` is given the file without suffix, the name and the whole shape of each tensor, and answers with the rows that
    are wanted of it, or None for all; no more than these is ever in memory. `verified` if somebody has just found it
    undamaged.

    Raises: StorageError if it is damaged; InputError for one that a newer version of this program wrote; ValueError if
    `take` asks for rows of another tensor than it was shown.
    """
    problem = None if verified else find_damage(path)
    if problem is not None:
        raise StorageError(f"{path} is damaged: {problem}; restore it from a backup, or use another")
    tensors, state = read_content(path, device, take)
    return Checkpoint(path=path, step=step_of(path), tensors=tensors, state=state)


def _newest_whole(
    run: str | Path, wanted: Callable[[int], bool], read: Callable[[Path], Checkpoint]
) -> Checkpoint | None:
    """What `read` makes of the newest whole checkpoint; as `load_latest`."""
    damaged: list[str] = []
    candidates = [path for step, path in listed(Path(run) / "checkpoints") if wanted(step)]
    for path in candidates:
        problem = find_damage(path)
        if problem is None:
            try:
                return replace(read(path), damaged=tuple(damaged))
            except FileNotFoundError as error:
                problem = f"{error.filename} is missing" if error.filename else cause_of(error)
        if path.exists():
            damaged.append(f"{path.name} is damaged: {problem}")
    if candidates and not damaged:  # while they were looked at, newer ones have replaced them all
        return _newest_whole(run, wanted, read)
    if damaged:
        raise StorageError(
            f"{run}: no checkpoint is whole ({'; '.join(damaged)}); restore one from a backup, or start a new run"
        )
    return None


def load_best(run: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """The newest whole checkpoint that is no later than the run's best validation loss, which checkpoint.keep_best
    keeps: the best weights of the run, whatever is done with them.

    Raises: InputError without an evaluation or such a checkpoint; otherwise as `load_latest`.
    """
    best = best_evaluation(run)
    if best is None:
        raise InputError(f"{run}: has no validation loss to choose the best by; leave --best out")
    found = load_latest(run, device=device, wanted=lambda step: step <= best.step)
    if found is None:
        raise InputError(
            f"{run}: was best at step {best.step}, validation {best.loss:.5f}, and its first checkpoint is later; "
            "leave --best out, or save more often in another run (checkpoint.every_seconds)"
        )
    return found


def checkpoint_up_to(run: str | Path, step: int) -> int | None:
    """The step of the newest checkpoint, whole or damaged, that is no later than `step`; None if there is none."""
    return max((saved for saved in checkpoint_steps(run) if saved <= step), default=None)


def stored_value(run: str | Path, name: str) -> Any:
    """What the state of the newest checkpoint that can be read has under `name`, without its tensors; None if nothing.

    It is not verified: for what every checkpoint of a run agrees on, before one is loaded.
    """
    for _, path in listed(Path(run) / "checkpoints"):
        try:
            return deserialize(json.loads((path / STATE).read_bytes())["state"][name], {})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def verify_checkpoints(run: str | Path) -> Iterator[CheckpointHealth]:
    """Re-hashes every checkpoint of the run, newest first; one that a run in progress removes meanwhile is left out.

    Raises: InputError for a checkpoint that a newer version of this program wrote.
    """
    for step, path in listed(Path(run) / "checkpoints"):
        damage = find_damage(path)
        if damage is None or path.exists():
            yield CheckpointHealth(path=path, step=step, damage=damage)


def checkpoint_steps(run: str | Path) -> list[int]:
    """The steps of the run's checkpoints by their names, whole or damaged, newest first."""
    return [step for step, _ in listed(Path(run) / "checkpoints")]


def _is_whole(path: Path) -> bool:
    try:
        return find_damage(path) is None
    except InputError:  # of a newer version, which a resume would refuse and not pass over
        return True


def seed_generators(seed: int) -> None:
    """Seeds the global generators whose states `random_state` saves, so that a run depends on its seed alone."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global generator is what is saved)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, those of all CUDA devices included."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 (the global generator is what is saved)
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Puts the global generators where `random_state` found them; CUDA's if as many devices are here."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def lost_random_state(state: Mapping[str, Any]) -> str | None:
    """What `restore_random_state` cannot put back here, in a sentence; None if it can all."""
    before, now = len(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if before in (0, now):
        return None
    devices = "1 CUDA device" if before == 1 else f"{before} CUDA devices"
    here = "none is" if now == 0 else "1 is" if now == 1 else f"{now} are"
    return (
        f"the checkpoint has the random state of {devices}, and {here} here: what is drawn on a device, such as "
        "dropout, goes on otherwise than it would have there"
    )
