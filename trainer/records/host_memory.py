"""Memory of the host that what a checkpoint will hold is copied to, so that training can go on while it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.records.content import CheckpointFile, checkpoint_files

FEW_ELEMENTS = 32_768
"""Torch computes with so many elements in the calling thread, and leaves the training's threads alone."""

_LIMITS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""Controllers of a line in /proc/self/cgroup → the mount, and the files of limit and usage: versions 2 and 1."""

Key = tuple[str, str]
"""The file and the name of a tensor."""
ROOM = 1.1
"""Times the memory of a copy that must be there: the next evaluation wants some too."""


class HostMemory:
    """One copy of weights, optimizer state and average, kept from one snapshot to the next.

    Costs as much memory as they take, from the first snapshot on: pages that the system hands out anew for each would
    take several times as long as the copy itself. On CUDA it is pinned, so that the device copies at full speed; torch
    rounds each pinned tensor up to a power of two.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}

    @torch.no_grad()
    def snapshot(
        self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> list[CheckpointFile] | None:
        """`checkpoint_files` as of now in memory of this object, which the next snapshot overwrites.

        The copy is complete on return, one synchronization of the device included, so that the next step may change
        everything. None, and nothing is kept, if the system has not enough memory available for what is missing.
        Raises: TypeError for state that has no form on disk.
        """
        files = list(checkpoint_files(tensors, state, on_host=False))
        sources = {(file.name, name): tensor for file in files for name, tensor in file.tensors.items()}
        self._kept = {
            key: held
            for key, tensor in sources.items()
            if (held := self._kept.get(key)) is not None and _fit(held, tensor)
        }
        if not self._fill_up(sources):
            self._kept.clear()
            return None
        for key, tensor in sources.items():
            self._kept[key].copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in sources.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return [replace(file, tensors={name: self._kept[file.name, name] for name in file.tensors}) for file in files]

    def _fill_up(self, sources: Mapping[Key, Tensor]) -> bool:
        """Takes the memory that is missing, if it is there."""
        missing = [key for key in sources if key not in self._kept]
        if ROOM * sum(sources[key].nbytes for key in missing) > available_bytes():
            return False
        try:
            self._kept |= {key: _like(sources[key]) for key in missing}
        except RuntimeError:  # what torch raises where memory cannot be had, or not be pinned
            return False
        return True


def _fit(held: Tensor, tensor: Tensor) -> bool:
    return (held.shape, held.dtype, held.is_pinned()) == (tensor.shape, tensor.dtype, tensor.is_cuda)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every element of these tensors on the host is a finite number; computed in the calling thread alone."""
    floats = (tensor for tensor in tensors if tensor.is_floating_point() or tensor.is_complex())
    parts = (part for tensor in floats if tensor.numel() for part in tensor.detach().reshape(-1).split(FEW_ELEMENTS))
    return all(math.isfinite(torch.linalg.vector_norm(part, math.inf).item()) for part in parts)


def available_bytes(root: Path = Path("/")) -> float:
    """Memory that can be had without swapping or the kernel killing, in bytes; infinite where nobody says.

    What the machine has available, and what every control group that this process is in leaves of its limit.
    """
    return min(_machine_bytes(root / "proc/meminfo"), *_control_group_bytes(root), math.inf)


def _machine_bytes(meminfo: Path) -> float:
    lines = dict(line.split(":", 1) for line in _lines(meminfo) if ":" in line)
    return 1024 * int(lines["MemAvailable"].split()[0]) if "MemAvailable" in lines else math.inf


def _control_group_bytes(root: Path) -> Iterator[float]:
    """Of each group with a limit, from this process's own up to the one that is mounted as their root."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in _LIMITS:
            mount, limit, usage = _LIMITS[controllers]
            mounted = root / mount
            group = mounted / path.lstrip("/")
            for folder in (group, *group.parents[: len(group.parts) - len(mounted.parts)]):
                for most in _lines(folder / limit):
                    yield math.inf if most == "max" else int(most) - _in_use(folder, usage)


def _in_use(folder: Path, usage: str) -> int:
    """What a group cannot give back: the cache of files counts in its usage, and goes when memory is wanted."""
    counts = dict(line.split() for line in _lines(folder / "memory.stat"))
    cached = sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in ("active_file", "inactive_file"))
    return max(sum(map(int, _lines(folder / usage))) - cached, 0)


def _lines(path: Path) -> list[str]:
    """Of a file of the kernel's; none where there is no such file, or nobody may read it: sandboxes offer some."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
