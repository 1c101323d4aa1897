"""Checkpoints: safetensors and JSON under a manifest of hashes, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import InputError, StorageError
from pipeline.shards import free_bytes, sync_file, sync_folder
from trainer.records.best import best_evaluation
from trainer.records.kept import folder_bytes, listed, partial_of, prune, remove, replaced_by, sweep
from trainer.records.serialization import deserialize, serialize

CHECKPOINT_VERSION = 1
_MANIFEST = "manifest.json"
STATE = "state.json"
STATE_FILE = "state"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


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


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """What one safetensors file of a checkpoint holds, and the form that makes a value of it again."""

    name: str
    """Without suffix; the file called `STATE_FILE` comes last."""
    form: Any
    tensors: dict[str, Tensor]


def checkpoint_files(
    tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, on_host: bool = True
) -> Iterator[CheckpointFile]:
    """The files of a checkpoint of `tensors` and `state`, one after the other; as `serialize` takes them apart."""
    for name, values in {**tensors, STATE_FILE: state}.items():
        form, stored = serialize(dict(values), on_host=on_host)
        yield CheckpointFile(name=name, form=form, tensors=stored)


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
) -> Path:
    """`save_checkpoint` of what `checkpoint_files` gave; takes no file before the one before it is written.

    Beside the `keep` newest it keeps the newest one that is no later than `best_step`.

    `before_publishing` is called when all is on disk under a name that nobody looks for. What it raises, or the
    iteration over `files`, is an error like any other: the checkpoint does not appear, and what was written goes.
    `not_pruned` is told, if older ones cannot be deleted, why; without it that is raised, though the new one is there.
    """
    folder = Path(run) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    final = folder / f"step-{step:08d}"
    partial = partial_of(final)
    try:
        partial.mkdir()
        _write_content(partial, step, files)
        before_publishing()
        _publish(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        prune(folder, step, keep=keep, best_step=best_step)
    except OSError as error:
        if not_pruned is None:
            raise
        not_pruned(error)
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


def load_latest(
    run: str | Path, *, device: torch.device | str = "cpu", wanted: Callable[[int], bool] = lambda step: True
) -> Checkpoint | None:
    """The newest whole checkpoint of the run at a step that is `wanted`, its `tensors` on `device`; None without one.

    Raises: StorageError if there are such checkpoints and every one is damaged; InputError for one that a
    newer version of this program wrote.
    """
    damaged: list[str] = []
    candidates = [(step, path) for step, path in listed(Path(run) / "checkpoints") if wanted(step)]
    for step, path in candidates:
        problem = find_damage(path)
        if problem is None:
            try:
                tensors, state = _read_content(path, device)
            except FileNotFoundError as error:
                problem = f"{error.filename} is missing"
            else:
                return Checkpoint(path=path, step=step, tensors=tensors, state=state, damaged=tuple(damaged))
        if path.exists():
            damaged.append(f"{path.name} is damaged: {problem}")
    if candidates and not damaged:  # while they were looked at, newer ones have replaced them all
        return load_latest(run, device=device, wanted=wanted)
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


def find_damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, or None if every byte is as it was written.

    Raises: InputError for a checkpoint that a newer version of this program wrote.
    """
    manifest = _manifest_or_damage(path)
    if isinstance(manifest, str):
        return manifest
    if manifest["format_version"] > CHECKPOINT_VERSION:
        raise InputError(
            f"{path} has checkpoint format {manifest['format_version']}, this version reads up to "
            f"{CHECKPOINT_VERSION}; update alphastream"
        )
    for name, entry in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if _hash_file(path / name) != entry["sha256"]:
                return f"{name} does not match its hash"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


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


def _manifest_or_damage(path: Path) -> dict[str, Any] | str:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{_MANIFEST} cannot be read ({error})"
    return manifest if claimed == _digest(manifest) else f"{_MANIFEST} does not match its own hash"


def _write_content(partial: Path, step: int, files: Iterable[CheckpointFile]) -> None:
    forms: dict[str, Any] = {}
    for file in files:
        forms[file.name] = file.form
        _save_tensors(file.tensors, partial / f"{file.name}.safetensors")
    content = {"state": forms.pop(STATE_FILE), "tensors": forms}
    (partial / STATE).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    for path in partial.glob("*.safetensors"):
        path.chmod((partial / STATE).stat().st_mode)  # the library lets nobody but the owner read them
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": _hash_file(path)} for path in sorted(partial.iterdir())
    }
    manifest = {"format_version": CHECKPOINT_VERSION, "step": step, "files": entries}
    manifest["sha256"] = _digest(manifest)
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in partial.iterdir():
        sync_file(path)
    sync_folder(partial)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # the library wraps the system's error in its own, which is not an OSError
        if number := _SYSTEM_ERROR.search(str(error)):
            raise StorageError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise StorageError(f"{path}: writing failed ({error}); make space or choose another disk") from error


def _publish(partial: Path, final: Path) -> None:
    """Gives the finished folder its name. A folder that has it already stays listed until the new one is."""
    replaced = replaced_by(final)
    if final.exists():
        if replaced.exists():
            remove(replaced)
        final.rename(replaced)
    partial.rename(final)
    sync_folder(final.parent)


def _read_content(path: Path, device: torch.device | str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    content = json.loads((path / STATE).read_text(encoding="utf-8"))
    tensors = {
        name: deserialize(form, load_file(path / f"{name}.safetensors", device=str(device)))
        for name, form in content["tensors"].items()
    }
    return tensors, deserialize(content["state"], load_file(path / "state.safetensors"))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
