"""What is said and counted while a run waits for its log to grow, and for how long it does."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ops.metrics import Metrics
from ops.receivers import ServiceManager
from pipeline.errors import InterruptedWaitError
from trainer.job.generations import LogWait
from trainer.job.generations.waiting import WAITING


class Scene:
    """A log into which rows come after so many looks; a look takes what it is given."""

    def __init__(self, *, looks: int, trouble: tuple[int, ...] = (), interrupted_at: int | None = None) -> None:
        self.now, self.left, self.looked = 0.0, looks, 0
        self.trouble, self.interrupted_at = trouble, interrupted_at
        self.states: list[str] = []
        self.said: list[str] = []
        self.shown: list[str] = []
        self.left_out: list[float] = []
        self.metrics = Metrics()
        self.seen: list[float] = []
        self.feed: Any = SimpleNamespace(
            log=SimpleNamespace(trouble=None), position=SimpleNamespace(epoch=2), await_rows=self.await_rows
        )
        self.outlets: Any = SimpleNamespace(
            metrics=self.metrics,
            clock=SimpleNamespace(pause_phase=lambda phase: nullcontext(), leave_out=self.left_out.append),
            live=SimpleNamespace(state=self.states.append, message=lambda step, text: self.shown.append(text)),
            directory=SimpleNamespace(event=lambda event, **values: self.said.append(values["message"])),
            console=SimpleNamespace(say=lambda text: None),
            manager=ServiceManager(),
            warn=lambda text, step: self.said.append(text),
        )

    def await_rows(self, seconds: float) -> bool:
        self.looked += 1
        if self.looked == self.interrupted_at:
            raise InterruptedWaitError
        self.seen.append(self.value("waiting_for_generation"))
        self.now += seconds
        self.feed.log.trouble = "the network is away" if self.looked in self.trouble else None
        return self.looked > self.left

    def value(self, name: str) -> float:
        found = self.metrics.registry.get_sample_value(f"alphastream_{name}")
        assert found is not None
        return found

    def wait(self, idle_seconds: float | None, *, budget_seconds: float = 0.0) -> LogWait:
        return LogWait(
            feed=self.feed,
            outlets=self.outlets,
            idle_seconds=idle_seconds,
            budget_seconds=budget_seconds,
            monotonic=lambda: self.now,
        )


def test_without_a_limit_it_waits_until_rows_come_and_counts_it() -> None:
    scene = Scene(looks=500)
    assert scene.wait(None).wait(step=7)
    assert scene.value("generation_wait_seconds_total") == pytest.approx(501)
    assert sum(scene.left_out) == pytest.approx(501)
    assert set(scene.seen) == {1.0}
    assert scene.value("waiting_for_generation") == 0.0
    assert scene.states == [WAITING, "training"]
    assert scene.said == scene.shown == ["all rows of 2 generations are trained on; waiting for the next"]


@pytest.mark.parametrize(("idle_seconds", "waited"), [(0, 0), (2.5, 2.5)])
def test_it_waits_no_longer_than_it_is_to(idle_seconds: float, waited: float) -> None:
    scene = Scene(looks=10**6)
    assert not scene.wait(idle_seconds).wait(step=7)
    assert scene.now == waited


def test_no_part_of_a_wait_is_as_long_as_one_for_a_step_s_rows_may_be() -> None:
    scene = Scene(looks=10**6)
    assert not scene.wait(3, budget_seconds=1.0).wait(step=7)
    assert scene.looked == pytest.approx(12, abs=1), "quarters of a second"


def test_time_without_a_look_at_the_folder_does_not_count() -> None:
    scene = Scene(looks=10**6, trouble=(2, 3, 4))
    assert not scene.wait(3).wait(step=7)
    assert scene.now == 6
    assert [text for text in scene.said if "network" in text] == [
        "cannot look for new generations (the network is away); trying again"
    ]


def test_an_interruption_does_not_begin_the_wait_anew() -> None:
    scene = Scene(looks=10**6, interrupted_at=3)
    wait = scene.wait(4)
    assert wait.wait(step=7), "the loop has something else to do"
    assert scene.now == 2
    assert not wait.wait(step=7)
    assert scene.now == 4
    assert len(scene.said) == 1, "said once for a generation"
