"""The copy that a checkpoint is written from: of its moment, in memory that is kept, and only where there is enough."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trainer.records.host_memory
from trainer.records import CheckpointFile, HostMemory, all_finite, save_checkpoint, write_checkpoint
from trainer.records.host_memory import FEW_ELEMENTS, available_bytes

GIGABYTE = 1 << 30


def content() -> dict[str, Any]:
    """Tensors in all the ways that they can lie."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(30, 4, generator=generator)
    weight = base.clone()
    return {
        "tensors": {
            "model": {"weight": weight, "tied": weight, "empty": torch.empty(0, 3), "transposed": base.t()},
            "average": {"weight": base[::2], "overlapping": base[:5], "half": base.to(torch.bfloat16)},
        },
        "state": {
            "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": base[1:]}}},
            "conjugate": torch.complex(base, base).conj(),
            "array": np.arange(5),
            "plain": [1, math.nan, b"x"],
        },
    }


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_from_the_copy_is_what_is_written_at_once(tmp_path: Path) -> None:
    at_once = save_checkpoint(tmp_path / "one", 1, **content())
    files = HostMemory().snapshot(**content())
    assert files is not None
    assert bytes_of(write_checkpoint(tmp_path / "other", 1, files, keep=1)) == bytes_of(at_once)


def held(files: list[CheckpointFile] | None) -> dict[str, Tensor]:
    assert files is not None
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in file.tensors.items()}


def test_later_steps_do_not_reach_the_copy() -> None:
    values = content()
    copied = held(HostMemory().snapshot(**values))["model:weight"]
    before = copied.clone()
    values["tensors"]["model"]["weight"].zero_()
    assert torch.equal(copied, before)
    assert before.any()


def test_memory_is_kept_for_what_stays_alike_and_let_go_for_the_rest() -> None:
    memory = HostMemory()
    tensors = {"model": {"stays": torch.ones(50), "grows": torch.ones(5), "goes": torch.ones(7)}}
    first = held(memory.snapshot(tensors, {}))
    tensors = {"model": {"stays": torch.full((50,), 2.0), "grows": torch.full((6,), 2.0)}}
    second = held(memory.snapshot(tensors, {}))
    assert second["model:stays"].data_ptr() == first["model:stays"].data_ptr()
    assert torch.equal(second["model:stays"], torch.full((50,), 2.0))
    assert torch.equal(second["model:grows"], torch.full((6,), 2.0))
    assert memory._kept.keys() == {("model", "stays"), ("model", "grows")}


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, tensors = HostMemory(), {"model": {"weight": torch.ones(100), "more": torch.ones(50)}}
    monkeypatch.setattr(trainer.records.host_memory, "available_bytes", lambda: 659)
    assert memory.snapshot(tensors, {}) is None
    assert memory._kept == {}
    monkeypatch.setattr(trainer.records.host_memory, "available_bytes", lambda: 661)
    assert memory.snapshot(tensors, {}) is not None
    monkeypatch.setattr(trainer.records.host_memory, "available_bytes", lambda: 0)
    assert memory.snapshot(tensors, {}) is not None, "what is held already needs none"


def test_memory_that_cannot_be_had_after_all_is_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    memory, tensors = HostMemory(), {"model": {"weight": torch.ones(100)}}
    monkeypatch.setattr(torch, "empty", refuse)
    assert memory.snapshot(tensors, {}) is None
    assert memory._kept == {}


@pytest.mark.gpu
def test_on_a_device_the_copy_is_complete_on_return_and_pinned() -> None:
    weight = torch.zeros(1 << 26, device="cuda")
    memory = HostMemory()
    for step in range(1, 4):
        weight.add_(1.0)
        copied = held(memory.snapshot({"model": {"weight": weight}}, {}))["model:weight"]
        weight.mul_(1.0).add_(0.0)
        assert copied.is_pinned()
        assert torch.equal(copied, torch.full((1 << 26,), float(step)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, FEW_ELEMENTS - 1, FEW_ELEMENTS, 3 * FEW_ELEMENTS])
def test_one_number_that_is_not_finite_is_found_anywhere(bad: float, place: int) -> None:
    tensor = torch.zeros(3 * FEW_ELEMENTS + 1)
    assert all_finite([torch.empty(0), tensor, torch.arange(3)])
    tensor[place] = bad
    assert not all_finite([torch.empty(0), tensor])
    assert not all_finite([tensor.to(torch.bfloat16)])


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable:    {8 * GIGABYTE // 1024} kB\n"}


def group(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    stat = f"anon 1\nactive_file {cached // 2}\ninactive_file {cached // 2}\n"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": str(used), f"{folder}/memory.stat": stat}


def test_memory_available_is_what_the_machine_says_without_groups(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path, MEMINFO)) == 8 * GIGABYTE
    assert available_bytes(tmp_path / "nothing") == math.inf


def test_the_narrowest_group_above_the_process_counts(tmp_path: Path) -> None:
    groups = {
        "proc/self/cgroup": "0::/pod/container\n",
        **group("sys/fs/cgroup", "max", 0, 0),
        **group("sys/fs/cgroup/pod", str(4 * GIGABYTE), 3 * GIGABYTE, GIGABYTE),
        **group("sys/fs/cgroup/pod/container", "max", 0, 0),
        **group("sys/fs/cgroup/elsewhere", "1", 0, 0),
    }
    assert available_bytes(machine(tmp_path, MEMINFO | groups)) == 2 * GIGABYTE


def test_groups_of_the_first_version_count_where_they_are_mounted(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    groups = {
        "proc/self/cgroup": "5:devices:/\n4:memory:/of/the/host\n0::/\n",
        f"{folder}/memory.limit_in_bytes": str(2 * GIGABYTE),
        f"{folder}/memory.usage_in_bytes": str(GIGABYTE),
        f"{folder}/memory.stat": f"inactive_file 7\ntotal_active_file 0\ntotal_inactive_file {GIGABYTE // 2}\n",
    }
    assert available_bytes(machine(tmp_path, MEMINFO | groups)) == GIGABYTE + GIGABYTE // 2


def test_what_a_sandbox_does_not_offer_is_no_error(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "4:memory:/gr\N{LATIN SMALL LETTER O WITH DIAERESIS}\N{LATIN SMALL LETTER SHARP S}e\n",
        f"{folder}/memory.limit_in_bytes": str(2 * GIGABYTE),
        f"{folder}/memory.usage_in_bytes": str(GIGABYTE),
    }
    root = machine(tmp_path, MEMINFO | files)
    assert available_bytes(root) == GIGABYTE, "no memory.stat: all that is used counts"
    (root / folder / "memory.usage_in_bytes").unlink()
    assert available_bytes(root) == 2 * GIGABYTE
    (root / folder / "memory.limit_in_bytes").unlink()
    (root / folder / "memory.limit_in_bytes").mkdir()  # cannot be read
    assert available_bytes(root) == 8 * GIGABYTE


def test_this_machine_has_some() -> None:
    assert 0 < available_bytes() < math.inf
