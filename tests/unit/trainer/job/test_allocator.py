"""Blocks that a step frees are not faulted in anew by the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.job.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from trainer.job.allocator import keep_freed_memory

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        gradient = torch.zeros(12_000_000)
        activation = torch.ones(10_000_000)
        del gradient, activation
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(3)
before = faults(8)
assert keep_freed_memory()
faults(3)
print(before, faults(8))
"""


def glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in os.confstr_names and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


@pytest.mark.skipif(not glibc(), reason="the allocator is not glibc's")
def test_pages_of_freed_blocks_are_faulted_in_once() -> None:
    # a process of its own: the setting cannot be taken back
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=Path(__file__).parents[4], capture_output=True, text=True, check=True
    )
    before, after = map(int, ended.stdout.split())
    assert before > 8 * 100, "pages of all sizes"
    assert after < before / 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {})
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr(os, "confstr", lambda _: "musl 1.2")
    assert not keep_freed_memory()
