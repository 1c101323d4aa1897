"""Files leave the page cache if the file system lets them, and it is said if it does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.shards.page_cache import PROBE_BYTES, cached_share, drop_files, drop_range, kept_cold, why_not_dropped

MEMORY = Path("/dev/shm")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of two probes, written back, of which every page is in memory."""
    path = tmp_path / "shard"
    with path.open("wb") as out:
        out.write(os.urandom(2 * PROBE_BYTES))
        out.flush()
        os.fsync(out.fileno())
    path.read_bytes()
    if why_not_dropped(path):
        pytest.skip("the page cache of the folder for temporary files cannot be dropped")
    path.read_bytes()
    return path


def test_a_file_is_dropped(file: Path) -> None:
    assert cached_share(file) == 1
    drop_files([file])
    assert cached_share(file) == 0


def test_what_is_read_again_is_dropped_again(file: Path) -> None:
    with kept_cold([file]):
        assert cached_share(file) == 0
        for _ in range(3):
            file.read_bytes()
            wait_until(lambda: cached_share(file) == 0)
    file.read_bytes()
    assert cached_share(file) == 1
    assert "alphastream-cold" not in {thread.name for thread in threading.enumerate()}


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls until `condition`; the test's own time limit ends one that never comes."""
    while not condition():
        pass


def test_a_range_is_dropped_and_the_rest_stays(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        drop_range(descriptor, 0, PROBE_BYTES // 2)
    finally:
        os.close(descriptor)
    assert cached_share(file) == pytest.approx(0.5, abs=0.1)  # some file systems keep pages in larger pieces


def test_a_file_in_memory_is_said_to_stay() -> None:
    if not MEMORY.is_dir():
        pytest.skip("no file system in memory here")
    path = MEMORY / f"alphastream-{os.getpid()}"
    path.write_bytes(bytes(PROBE_BYTES))
    try:
        assert str(path) in (why_not_dropped(path) or "")
    finally:
        path.unlink()


def test_a_platform_without_the_call_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert "posix_fadvise" in (why_not_dropped(tmp_path / "any") or "")
