"""What tests of faults share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trainer.job.observer import RunObserver


@pytest.fixture
def on_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has a function called after a step, given by the steps done then."""
    original, calls = RunObserver.on_step, dict[int, Callable[[], object]]()

    def on_step(self: RunObserver, record: Any, *rest: Any) -> None:
        original(self, record, *rest)
        calls.get(record["step"] + 1, lambda: None)()

    monkeypatch.setattr(RunObserver, "on_step", on_step)
    return calls.__setitem__
