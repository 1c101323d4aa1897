"""Where the real rows lie, and what is skipped (with a reason) where something is absent."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported, and for processes that tests start: on many threads tiny models mostly wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: without a device its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        skip = pytest.mark.skip(reason="needs the processor for itself: make alerts")
        for item in items:
            if item.get_closest_marker("alone"):
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and none is here")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real click logs and golden encodings, never copied into the project."""
    folder = Path(os.environ.get("ALPHASTREAM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "criteo_kaggle_137139.tsv.gz").is_file():
        pytest.skip(f"the real rows are not at {folder} (set ALPHASTREAM_TEST_DATA to their folder)")
    return folder
