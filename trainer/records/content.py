"""What the folder of a checkpoint holds: safetensors, their forms as JSON, and a manifest of hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import InputError, StorageError
from pipeline.shards import sync_file, sync_folder
from trainer.records.serialization import serialize

CHECKPOINT_VERSION = 1
"""Of a checkpoint whose every tensor lies whole in one file."""
SHARDED_VERSION = 3
"""Of one with tensors whose rows lie in several files, in each of them every so many-th; the newest that this program
reads. In version 2 each file has rows that follow one another."""
MANIFEST = "manifest.json"
STATE = "state.json"
STATE_FILE = "state"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


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


def write_content(partial: Path, step: int, files: Iterable[CheckpointFile]) -> None:
    """Fills the folder of a checkpoint of one process, and makes it durable; takes one file after the other.

    Raises: OSError when writing fails.
    """
    forms: dict[str, Any] = {}
    for file in files:
        forms[file.name] = file.form
        write_tensors(partial / f"{file.name}.safetensors", file.tensors)
    write_state(partial, forms)
    entries = {path.name: file_entry(path) for path in sorted(partial.iterdir())}
    write_manifest(partial, step, CHECKPOINT_VERSION, entries)
    for path in partial.iterdir():
        sync_file(path)
    sync_folder(partial)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, readable as the umask says.

    Raises: StorageError when writing fails, with the system's number if it gave one.
    """
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path)
        path.chmod(mode)  # the library lets nobody but the owner read it
    except SafetensorError as error:
        # the library wraps the system's error in its own, which is not an OSError
        if number := _SYSTEM_ERROR.search(str(error)):
            raise StorageError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise StorageError(f"{path}: writing failed ({error}); make space or choose another disk") from error


def write_state(partial: Path, forms: Mapping[str, Any], **more: Any) -> None:
    """The forms by file name, and `more` beside them, as JSON."""
    content = {
        "state": forms[STATE_FILE],
        "tensors": {name: form for name, form in forms.items() if name != STATE_FILE},
    }
    (partial / STATE).write_text(json.dumps(content | more, allow_nan=False), encoding="utf-8")


def file_entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": _hash_file(path)}


def write_manifest(partial: Path, step: int, version: int, entries: Mapping[str, Any]) -> None:
    """The manifest of the files that `entries` tells of, with its own hash."""
    manifest = {"format_version": version, "step": step, "files": entries}
    manifest["sha256"] = _digest(manifest)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def find_damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, or None if every byte is as it was written.

    Raises: InputError for a checkpoint that a newer version of this program wrote.
    """
    manifest = _manifest_or_damage(path)
    if isinstance(manifest, str):
        return manifest
    if manifest["format_version"] > SHARDED_VERSION:
        raise InputError(
            f"{path} has checkpoint format {manifest['format_version']}, this version reads up to "
            f"{SHARDED_VERSION}; update alphastream"
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


def step_of(path: Path) -> int:
    """The step of an undamaged checkpoint; raises OSError if it has gone."""
    return json.loads((path / MANIFEST).read_bytes())["step"]


def _manifest_or_damage(path: Path) -> dict[str, Any] | str:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return manifest if claimed == _digest(manifest) else f"{MANIFEST} does not match its own hash"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
