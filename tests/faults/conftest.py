"""What tests of faults share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.rank_runs import RankRuns
from tests.faults.runs import CAN_BLOCK, block_library
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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """One for all files; reads of its children can be blocked where there is a compiler."""
    environment = {"LD_PRELOAD": str(block_library(tmp_path_factory.mktemp("library")))} if CAN_BLOCK else {}
    with ForkServer(environment) as started:
        yield started


@pytest.fixture(scope="session")
def rank_runs(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> RankRuns:
    return RankRuns(server, tmp_path_factory.mktemp("ranks"))
