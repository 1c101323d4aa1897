"""The cores that a process may use are those it is confined to, not those of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pipeline.device import DataConfig
from pipeline.stages import usable_cores


@pytest.fixture
def one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity") or len(allowed := os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, and a system that can take one away")
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_core")
def test_a_confined_process_counts_only_its_cores() -> None:
    assert usable_cores() == 1
    assert DataConfig(path="data").reader_threads == 1
    assert DataConfig(path="data", read_threads=3).reader_threads == 3
