"""The loop on a device that lags: what a step's time was, when the host waits, what is drained before a pause."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from ops.bound import BoundKind
from ops.device_clock import IN_FLIGHT_STEPS, DeviceClock
from ops.device_time import shared
from ops.step_clock import NANOSECONDS, PHASES, StepTiming
from pipeline.errors import InterruptedWaitError
from stepsize.policies import NO_HORIZON, HorizonPlan
from tests.lagging_device import ANOTHER_ZERO, MILLISECOND, LaggingDevice, PacedFeed
from trainer.budget import EvalConfig
from trainer.divergence import Checked
from trainer.loop import Loop, Position, Timetable
from trainer.records.config import CheckpointConfig
from trainer.step import Trained

STEP = 100 * MILLISECOND
"""What the device takes for a step."""
WORK = {"forward": 30, "backward": 50, "optimizer": 20}
"""In hundredths of a step."""


@dataclass
class Scene:
    """A run on `device`: its step, worker, policy, observer and host in one."""

    device: LaggingDevice
    launching: int = 3 * MILLISECOND
    """The host's time to launch a step."""
    between: int = 0
    """The host's time between two steps."""
    agreeing: Callable[[], int] = lambda: 0
    """How long the host waits for other ranks between two steps."""
    exchanging: int = 0
    """How long the device exchanges something with other ranks, amid the backward pass."""
    agreed: list[tuple[int, int]] = field(default_factory=list)
    """From when to when the host waited for them."""
    jitter: Callable[[int], float] = lambda step: 1.0
    estimates_take: int = 0
    """How long the host waits for α* when it drains."""
    steps: list[StepTiming] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    read_at: list[int] = field(default_factory=list)
    """Steps that were launched when a step was read."""
    pauses: list[StepTiming] = field(default_factory=list)
    begun: list[tuple[str, int, int]] = field(default_factory=list)
    """What began, after how many read steps, and how far the device was behind then."""
    launched: int = 0
    stops: bool = False

    def __post_init__(self) -> None:
        self.clock = DeviceClock(self.device, nanosecond_time=self.device.time)
        self.worker = self

    def __call__(self, pair: Any, *, step: int, learning_rate: float, measure: bool, plan: HorizonPlan) -> Trained:
        waited = len(self.device.waited_for)
        for phase, share in WORK.items():
            with self.clock.phase(phase):
                self.device.now += self.launching * share // 100
                self.device.queue(round(STEP * self.jitter(step)) * share // 100)
                if phase == "backward":
                    with self.clock.phase("communication"):
                        self.device.queue(self.exchanging)
                    self.device.queue(self.exchanging)
        assert len(self.device.waited_for) == waited, "a step waits for nothing"
        self.launched += 1
        checked = Checked(sizes=torch.tensor([0.0, 0.5]), names=["an input", "the loss"], loss=torch.tensor(0.5))
        return Trained(loss=torch.tensor(0.5), checked=checked)

    def poll(self, *, step: int) -> list[Any]:
        return []

    flush = poll

    def drain(self, *, step: int) -> list[Any]:
        self.device.now = max(self.device.now, self.device.free_at) + self.estimates_take
        return []

    def horizon(self, done: int) -> HorizonPlan:
        return NO_HORIZON

    def learning_rate(self, step: int, scheduled: float) -> float:
        self.device.now += self.between
        return scheduled

    def on_step(self, record: dict[str, Any], timing: StepTiming, training_seconds: float) -> None:
        self.steps.append(timing)
        self.records.append(record)
        self.read_at.append(self.launched)

    def on_pause(self, timing: StepTiming) -> None:
        self.pauses.append(timing)

    def evaluate(self, position: Position) -> dict[str, float]:
        self._begin("evaluate")
        return {"validation": 0.4}

    def save(self, position: Position, *, final: bool) -> None:
        self._begin("save")

    def _begin(self, what: str) -> None:
        self.begun.append((what, len(self.steps), max(self.device.free_at - self.device.now, 0)))
        self.device.now += 1000 * MILLISECOND

    def agree(self, position: Position, *, scheduled: bool) -> None:
        began = self.device.now
        with self.clock.phase("communication"):
            self.device.now += self.agreeing()
        self.agreed.append((began, self.device.now))

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        return scheduled

    def poll_save(self) -> None:
        pass

    def broken_weights(self) -> None:
        pass

    def stopping(self) -> bool:
        return self.stops

    def save_asked(self) -> bool:
        return False

    def run(self, feed: Any, *, steps: int, every: int | None = None) -> Position:
        me = cast(Any, self)
        loop = Loop(
            feed=feed,
            train_step=me,
            policy=me,
            scheduled_rate=lambda step: 0.1,
            timetable=Timetable(
                total_steps=steps,
                evaluation=EvalConfig(every_steps=every),
                checkpoint=CheckpointConfig(every_steps=None, every_seconds=None),
            ),
            host=me,
            observer=me,
        )
        loop.run()
        return loop.position

    def assert_accounted(self) -> None:
        """Steps and pauses together are the wall time, to the nanosecond."""
        for timing in (*self.steps, *self.pauses):
            assert sum(timing.phase_nanoseconds.values()) == timing.nanoseconds
            assert timing.phase_nanoseconds.keys() == set(PHASES)
            assert min(timing.phase_nanoseconds.values()) >= 0
        assert sum(timing.nanoseconds for timing in (*self.steps, *self.pauses)) == self.device.now
        assert sum(self.clock.totals().values()) * NANOSECONDS == pytest.approx(self.device.now, abs=1)


def share(scene: Scene, phase: str) -> float:
    """Of the steps but the first few, which fill the queue, and the last, which is drained."""
    steady = scene.steps[5:-1]
    return sum(step.phase_nanoseconds[phase] for step in steady) / sum(step.nanoseconds for step in steady)


@pytest.mark.parametrize(
    ("slowness", "expected"), [(0.5, 0.0), (0.98, 0.0), (1.02, 0.02 / 1.02), (1.2, 0.2 / 1.2), (2.0, 0.5)]
)
@pytest.mark.parametrize("copy", [None, 0])
def test_a_feed_is_waited_for_as_much_as_it_is_too_slow(slowness: float, expected: float, copy: int | None) -> None:
    scene = Scene(LaggingDevice(), launching=0)
    scene.run(PacedFeed(scene.device, round(slowness * STEP), copy=copy), steps=60)
    assert share(scene, "data_wait") == pytest.approx(expected, abs=1e-6)
    assert share(scene, "other") == pytest.approx(0, abs=1e-6)
    bound = scene.clock.bound()
    assert bound.kind is (BoundKind.DATA if expected >= 0.1 else BoundKind.COMPUTE)
    if expected:
        assert bound.data_share / (1 - bound.pause_share) == pytest.approx(expected, rel=0.05)
    scene.assert_accounted()


def test_the_device_s_phases_are_its_own_and_not_the_launches() -> None:
    scene = Scene(LaggingDevice())
    scene.run(PacedFeed(scene.device, STEP // 2), steps=20)
    for timing in scene.steps[5:-1]:
        spent = timing.phase_nanoseconds
        assert {name: spent[name] for name in WORK} == {name: part * MILLISECOND for name, part in WORK.items()}
        assert timing.nanoseconds == STEP
    scene.assert_accounted()


def test_a_host_too_slow_to_launch_is_no_wait_for_rows() -> None:
    """The rows are there; the host takes twice the device's time for what it does between two steps."""
    scene = Scene(LaggingDevice(), between=2 * STEP, launching=0)
    scene.run(PacedFeed(scene.device, MILLISECOND), steps=30)
    assert share(scene, "data_wait") == pytest.approx(0, abs=1e-6)
    assert share(scene, "other") == pytest.approx(0.5, abs=1e-6)
    assert scene.clock.bound().kind is BoundKind.COMPUTE
    scene.assert_accounted()


def test_the_queue_s_wait_for_the_copy_is_transfer() -> None:
    scene = Scene(LaggingDevice(), launching=0)
    scene.run(PacedFeed(scene.device, 2 * STEP, copy=5 * MILLISECOND), steps=30)
    for timing in scene.steps[5:-1]:
        assert timing.phase_nanoseconds["transfer"] == 5 * MILLISECOND
    scene.assert_accounted()


@pytest.mark.parametrize("seed", range(5))
def test_of_any_times_the_wait_for_rows_is_when_the_device_was_dry_and_the_host_waited(seed: int) -> None:
    """Against the spans themselves: here the device tells when it had nothing to do."""
    chosen = random.Random(seed)
    scene = Scene(
        LaggingDevice(),
        jitter=lambda step: chosen.uniform(0.5, 1.5),
        launching=chosen.randrange(50 * MILLISECOND),
        between=chosen.randrange(50 * MILLISECOND),
    )
    feed = PacedFeed(scene.device, round(1.02 * STEP), ahead=chosen.randrange(1, 4))
    scene.run(feed, steps=100, every=chosen.randrange(7, 50))
    expected = sum(shared(dry, feed.waits) for dry in scene.device.dry)
    assert sum(timing.phase_nanoseconds["data_wait"] for timing in scene.steps) == expected > 0
    scene.assert_accounted()


def test_an_exchange_within_a_phase_is_communication_and_the_rest_of_the_phase_is_not() -> None:
    scene = Scene(LaggingDevice(), exchanging=7 * MILLISECOND)
    scene.run(PacedFeed(scene.device, MILLISECOND), steps=20, every=8)
    for timing in scene.steps[5:-1]:
        spent = timing.phase_nanoseconds
        assert (spent["communication"], spent["backward"]) == (7 * MILLISECOND, 57 * MILLISECOND)
    scene.assert_accounted()


def test_a_rank_that_waits_for_the_others_between_its_steps_is_bound_by_communication() -> None:
    scene = Scene(LaggingDevice(), agreeing=lambda: 3 * STEP, launching=0)
    scene.run(PacedFeed(scene.device, MILLISECOND), steps=30)
    assert share(scene, "communication") == pytest.approx(2 / 3, abs=1e-6)
    assert share(scene, "other") == pytest.approx(0, abs=1e-6)
    bound = scene.clock.bound()
    assert bound.kind is BoundKind.COMMUNICATION
    assert "communicating with other ranks" in str(bound)
    scene.assert_accounted()


@pytest.mark.parametrize("seed", range(5))
def test_of_any_times_the_wait_for_other_ranks_is_when_the_device_was_dry_and_the_host_waited(seed: int) -> None:
    chosen = random.Random(seed)
    scene = Scene(
        LaggingDevice(),
        jitter=lambda step: chosen.uniform(0.5, 1.5),
        launching=chosen.randrange(50 * MILLISECOND),
        between=chosen.randrange(50 * MILLISECOND),
        agreeing=lambda: chosen.randrange(3 * STEP),
    )
    scene.run(PacedFeed(scene.device, STEP // 2), steps=60, every=chosen.randrange(7, 50))
    scene.device.queue(0)  # the device tells that it was dry once it is not
    expected = sum(shared(dry, scene.agreed) for dry in scene.device.dry)
    found = sum(timing.phase_nanoseconds["communication"] for timing in (*scene.steps, *scene.pauses))
    assert found == pytest.approx(expected, rel=1e-9)
    assert expected > 0
    scene.assert_accounted()


def test_the_host_waits_for_nothing_but_the_step_two_before() -> None:
    scene = Scene(LaggingDevice())
    scene.run(PacedFeed(scene.device, MILLISECOND), steps=10)
    assert scene.read_at == [*range(IN_FLIGHT_STEPS + 1, 11), 10, 10]
    assert len(scene.device.waited_for) == 10
    assert [record["step"] for record in scene.records] == list(range(10))


def test_what_is_in_flight_is_drained_before_a_pause_and_belongs_to_training() -> None:
    scene = Scene(LaggingDevice())
    position = scene.run(PacedFeed(scene.device, MILLISECOND), steps=8, every=4)
    assert scene.begun == [("evaluate", 4, 0), ("evaluate", 8, 0), ("save", 8, 0)]
    pauses = [pause.seconds for pause in scene.pauses]
    assert pauses == [0, 1, 1, 1]
    busy = sum(timing.phase_nanoseconds[name] for timing in scene.steps for name in WORK)
    assert busy == pytest.approx(8 * STEP, rel=0.01)
    assert position.training_seconds == pytest.approx(sum(timing.seconds for timing in scene.steps))
    assert [record["seconds"] for record in scene.records] == [timing.seconds for timing in scene.steps]
    scene.assert_accounted()


def test_waiting_for_the_estimates_in_flight_is_alpha() -> None:
    scene = Scene(LaggingDevice(), estimates_take=40 * MILLISECOND)
    scene.run(PacedFeed(scene.device, MILLISECOND), steps=4)
    assert scene.steps[-1].phase_nanoseconds["alpha"] == 40 * MILLISECOND
    assert [timing.phase_nanoseconds["alpha"] for timing in scene.steps[:-1]] == [0, 0, 0]
    scene.assert_accounted()


def test_the_first_step_s_wait_is_its_own_and_leaves_the_verdict() -> None:
    scene = Scene(LaggingDevice(), launching=0)
    scene.run(PacedFeed(scene.device, STEP // 2, first_at=50 * STEP), steps=20)
    assert scene.steps[0].phase_nanoseconds["data_wait"] == 50 * STEP + STEP // 2
    assert scene.clock.bound().data_share == pytest.approx(0, abs=1e-6)
    scene.assert_accounted()


def test_a_device_whose_clock_is_fast_is_set_right_at_each_drain() -> None:
    class Fast(LaggingDevice):
        def nanoseconds(self, earlier: Any, later: Any) -> int:
            return round(1.001 * super().nanoseconds(earlier, later))

    scene = Scene(Fast())
    scene.run(PacedFeed(scene.device, STEP // 2), steps=100, every=20)
    scene.assert_accounted()


def test_an_open_wait_for_rows_is_seen_while_it_lasts() -> None:
    """Two steps of 100 ms are in flight when the third pair is asked for: from their end on the device is dry."""
    device = LaggingDevice()
    scene = Scene(device, launching=0)
    seen = []

    class LateFeed(PacedFeed):
        def __next__(self) -> Any:
            if scene.launched == 2:
                for _ in range(4):
                    device.now += STEP
                    open_phases = scene.clock.open_phases()
                    seen.append((round(open_phases["forward"], 3), round(open_phases["data_wait"], 3)))
            return super().__next__()

    scene.run(LateFeed(device, 0), steps=3)
    assert seen == [(0.03, 0.0), (0.06, 0.0), (0.06, 0.1), (0.06, 0.2)]
    assert scene.steps[2].phases["data_wait"] == pytest.approx(0.2)
    assert device.waited_for[0].at == ANOTHER_ZERO + STEP
    assert not any(scene.clock.open_phases().values())
    scene.assert_accounted()


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("launched", [0, 3])
def test_a_wait_that_is_given_up_stays_data_wait(launched: int, stops: bool) -> None:
    """With steps in flight and with none; whether the run then stops, or goes back to waiting for the same rows."""
    device = LaggingDevice()
    scene = Scene(device, launching=0)
    given_up: list[int] = []

    class Interrupted(PacedFeed):
        def __next__(self) -> Any:
            if scene.launched == launched and not given_up:
                given_up.append(device.now)
                device.now += 7 * STEP
                scene.stops = stops
                raise InterruptedWaitError
            return super().__next__()

    scene.run(Interrupted(device, 0), steps=6)
    assert scene.launched == (launched if stops else 6)
    idle = 7 * STEP - min(launched, IN_FLIGHT_STEPS) * STEP  # until then the device had work
    spent = sum(timing.phase_nanoseconds["data_wait"] for timing in (*scene.steps, *scene.pauses))
    assert spent == idle
    scene.assert_accounted()
