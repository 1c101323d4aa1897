"""A rank that only works: rank 0 alone talks, serves, and writes what is not rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.job.run_directory import RECORD_FILES, RunDirectory
from trainer.records import Extent


class _Unkept:
    """Stands in for the records that rank 0 writes."""

    waiting = lost = 0
    trouble = None
    extent = Extent(-1, 0)

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def take_notices(self) -> list[str]:
        return []


class SilentDirectory(RunDirectory):
    """The run directory as ranks after the first see it: they read settings and checkpoints, and write rows alone."""

    writes = False

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path = Path(path)
        self.before = self._kept()
        self.changes = self._sanctioned_changes(config)
        self.records: dict[str, Any] = {name: _Unkept(self.path / f"{name}.jsonl") for name in RECORD_FILES}
        self._config = config

    def event(self, event: str, **values: Any) -> None:
        pass

    def lengths(self) -> dict[str, Any]:
        return {}

    def sync(self) -> None:
        pass

    def begin(self, config: Config, *, records: Mapping[str, Any]) -> None:
        pass

    def cut(self, records: Mapping[str, Any]) -> None:
        pass

    def thin(self, *, done: int) -> None:
        pass

    def close(self) -> None:
        pass


def silenced(config: Config) -> Config:
    """The settings of a rank that serves and shows nothing."""
    return replace(config, metrics=replace(config.metrics, port=-1, tensorboard_every_steps=0))
