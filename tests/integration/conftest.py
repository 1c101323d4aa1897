"""A small generated log, preprocessed once, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trained import Trained, train_on
from trainer.cli import main


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generated day of 12,000 lines."""
    folder = tmp_path_factory.mktemp("log")
    assert main(["sample", str(folder), "--rows", "12000", "--seed", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def small_data(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards, in row groups short enough that shuffling crosses several."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    assert main(["preprocess", str(small_log), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def trained(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on the small log as one folder."""
    lines = b"".join(path.read_bytes() for path in sorted(small_log.glob("day_*"))).splitlines()
    return train_on(lines, tmp_path_factory.mktemp("predict"))


@pytest.fixture
def write_config(tmp_path: Path, small_data: Path) -> Callable[..., Path]:
    """A configuration for a quick run on the small log; `text` is further TOML."""

    def write(text: str = "", *, data: str = "batch_rows = 64") -> Path:
        path = tmp_path / "config.toml"
        path.write_text(
            f'[data]\npath = "{small_data}"\n{data}\n[model]\ntable_rows = 2048\n[metrics]\nport = -1\n{text}\n'
        )
        return path

    return write
