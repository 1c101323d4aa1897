"""What has gone on for longer than its budget is told once, and so is that it goes on; by looks at a fake clock."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ops.step_clock import OpenPhase
from trainer.process import Hang, Watchdog, WatchdogConfig

LOOK = 1.0


class Scene:
    """A run at one phase after another, and a watchdog that looks at it once a second."""

    def __init__(self, **settings: Any) -> None:
        self.now, self.phase, self.since, self.steps, self.saving = 0.0, "other", 0, 1, 0.0
        self.told: list[tuple[str, str, float]] = []
        self.asked = 0
        self.watchdog = Watchdog(
            WatchdogConfig(**settings),
            open_phase=lambda: OpenPhase(name=self.phase, seconds=0.0, steps=self.steps, since=self.since),
            on_hang=lambda hang: self.tell("hang", hang),
            on_recovery=lambda hang: self.tell("recovery", hang),
            leave=lambda hang: self.tell("leave", hang),
            monotonic=lambda: self.now,
        )
        self.watchdog.saving_seconds = lambda: self.saving

    def tell(self, what: str, hang: Hang) -> None:
        self.told.append((what, hang.phase, self.now))

    def begin(self, phase: str) -> None:
        self.phase, self.since = phase, self.since + 1

    def look(self, times: int) -> None:
        for _ in range(times):
            self.now += LOOK
            self.watchdog.look()

    def ask(self) -> None:
        self.asked += 1


@pytest.mark.parametrize(
    ("phase", "steps", "key"),
    [
        ("data_wait", 1, "data_wait_seconds"),
        ("data_wait", 0, "first_step_seconds"),
        ("other", 0, "first_step_seconds"),
        *((phase, 1, "step_seconds") for phase in ("transfer", "forward", "backward", "optimizer", "alpha", "other")),
        ("evaluation", 0, "evaluation_seconds"),
        ("checkpoint", 5, "checkpoint_seconds"),
    ],
)
def test_each_phase_has_its_budget(phase: str, steps: int, key: str) -> None:
    scene = Scene(**{key: 20.0})
    scene.steps = steps
    scene.begin(phase)
    scene.look(20)
    assert scene.told == []
    scene.look(30)
    assert scene.told == [("hang", phase, 21.0)]


def test_it_is_told_once_that_a_run_hangs_and_once_that_it_goes_on() -> None:
    scene = Scene(data_wait_seconds=30.0)
    scene.begin("data_wait")
    scene.look(100)
    scene.begin("forward")
    scene.look(50)
    assert scene.told == [("hang", "data_wait", 31.0), ("recovery", "data_wait", 101.0)]
    scene.begin("data_wait")
    scene.look(40)
    assert scene.told[2:] == [("hang", "data_wait", 181.0)]


def test_a_run_that_changes_phase_never_hangs() -> None:
    scene = Scene(data_wait_seconds=30.0, step_seconds=30.0)
    for _ in range(10):
        for phase in ("data_wait", "forward", "other"):
            scene.begin(phase)
            scene.look(29)
    assert scene.told == []


def test_a_long_evaluation_lives_by_its_beats() -> None:
    scene = Scene(evaluation_seconds=30.0)
    scene.begin("evaluation")
    for _ in range(100):
        scene.watchdog.beat()
        scene.look(25)
    assert scene.told == []
    scene.look(30)
    assert scene.told == [("hang", "evaluation", 2531.0 - 25.0)]


def test_no_budget_no_hang() -> None:
    scene = Scene(data_wait_seconds=0)
    scene.begin("data_wait")
    scene.look(100_000)
    assert scene.told == []


def test_time_in_which_the_process_stood_still_is_no_hang() -> None:
    """SIGSTOP, a frozen container, a laptop's sleep: everything stood still, the run and the watchdog alike."""
    scene = Scene(data_wait_seconds=30.0)
    scene.begin("data_wait")
    scene.look(10)
    scene.now += 7200.0
    scene.look(15)
    assert scene.told == []
    scene.look(15)
    assert [what for what, *_ in scene.told] == ["hang"]


def test_a_save_beside_training_hangs_while_training_goes_on() -> None:
    scene = Scene(checkpoint_seconds=100.0)
    for second in range(150):
        scene.saving = float(second)
        scene.begin("forward")
        scene.look(1)
    scene.saving = 0.0
    scene.look(1)
    assert scene.told == [("hang", "checkpoint", 101.0), ("recovery", "checkpoint", 151.0)]


def test_reporting_asks_nothing_of_the_run() -> None:
    scene = Scene(data_wait_seconds=30.0)
    scene.watchdog.stop_by(scene.ask)
    scene.begin("data_wait")
    scene.look(10_000)
    assert scene.asked == 0
    assert not scene.watchdog.gave_up


def test_exiting_asks_once_and_leaves_at_the_end_of_the_grace() -> None:
    scene = Scene(action="exit", data_wait_seconds=30.0, grace_seconds=60.0)
    scene.watchdog.stop_by(scene.ask)
    scene.begin("data_wait")
    scene.look(31)
    assert scene.asked == 1
    assert scene.watchdog.gave_up
    scene.begin("checkpoint")  # the save that was asked for, on a disk that is dead as well
    scene.look(59)
    assert [what for what, *_ in scene.told] == ["hang", "recovery"]
    scene.look(1)
    assert scene.told[2:] == [("leave", "checkpoint", 91.0)]
    assert scene.asked == 1


def test_what_can_be_saved_later_is_asked_for_then() -> None:
    scene = Scene(action="exit", first_step_seconds=30.0)
    scene.steps = 0
    scene.look(31)
    assert scene.watchdog.gave_up
    scene.watchdog.stop_by(scene.ask)
    assert scene.asked == 1


def test_the_thread_ends_with_the_context() -> None:
    before = threading.active_count()
    with Scene().watchdog:
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    off = dict.fromkeys(("data_wait", "step", "evaluation", "checkpoint", "first_step"), 0)
    with Scene(**{f"{name}_seconds": value for name, value in off.items()}).watchdog:
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"action": "reboot"}, "watchdog.action"), ({"step_seconds": -1}, "watchdog.step_seconds")],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WatchdogConfig(**settings)


def test_a_wait_for_other_ranks_has_the_budget_of_what_it_is_part_of() -> None:
    """An evaluation that is long on another rank is no hang of this one."""
    now = 0.0
    within = "evaluation"
    told: list[Hang] = []
    watchdog = Watchdog(
        WatchdogConfig(step_seconds=4, evaluation_seconds=20),
        open_phase=lambda: OpenPhase(name="communication", seconds=0.0, steps=9, since=1, within=within),
        on_hang=told.append,
        on_recovery=lambda hang: None,
        leave=lambda hang: None,
        monotonic=lambda: now,
    )
    for _ in range(15):
        now += LOOK
        watchdog.look()
    assert not told
    within = "other"
    now += LOOK
    watchdog.look()
    assert [(hang.phase, hang.key) for hang in told] == [("communication", "step_seconds")]
