"""Small data folders whose every cell tells which row it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_data import write_tiny


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Three training shards of 4 + 3 + 5 row groups of uneven length (77 rows), 10 validation rows."""
    train = [[7, 7, 7, 2], [7, 7, 5], [7, 7, 7, 7, 7]]
    return write_tiny(tmp_path / "data", {"train": train, "validation": [[6, 4]]})
