"""A small file system of its own, to be filled."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
"""What a file takes at least."""


@contextmanager
def small_file_system(folder: Path, *, mebibytes: int, files: int = 0) -> Iterator[Path]:
    """A tmpfs of so many MiB, and so many files and folders if not 0, at `folder`; skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,nr_inodes={files}", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small file system needs root on Linux and the right to mount")
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
            gc.collect()  # what was read from it may be mapped still
            subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Mounts it anew: `ro`, `rw`, or `nr_inodes=0` for as many files as there is room for."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """A file that leaves so little of the file system free; delete it to make room again."""
    ballast, taken = folder / "ballast", True
    while taken:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        try:
            ballast.write_bytes(bytes(max(free - leave_bytes, 0)))
            taken = False
        except OSError as error:  # a checkpoint may be written meanwhile, by its thread, to what was free
            if error.errno != errno.ENOSPC:
                raise
            ballast.unlink(missing_ok=True)
    return ballast
