"""Saves whose thread is waited for, so that what a test does at a step finds them done however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.job.save_thread import SaveThread


def end_saves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each save ends, well or not, before the next step."""
    begin = SaveThread.begin

    def begin_and_end(self: SaveThread, step: int, write: Callable[[], Path | None]) -> None:
        begin(self, step, write)
        while self.busy:
            time.sleep(0.001)

    monkeypatch.setattr(SaveThread, "begin", begin_and_end)
