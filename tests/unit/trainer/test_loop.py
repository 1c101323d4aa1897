"""When the loop steps, evaluates, saves and stops, with everything that it drives faked and time made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ops.step_clock import NANOSECONDS, StepClock, StepTiming
from stepsize.estimate import Estimate, Outcome
from stepsize.policies import NO_HORIZON, HorizonPlan
from trainer.budget import BudgetConfig, EvalConfig
from trainer.divergence import Checked, Divergence, DivergenceConfig
from trainer.loop import Loop, Position, Stop, Timetable
from trainer.records.config import CheckpointConfig
from trainer.step import Trained

NONFINITE_STEPS = DivergenceConfig().nonfinite_steps


def estimate_of(step: int) -> Estimate:
    return Estimate(
        step=step,
        age=0,
        outcome=Outcome.OK,
        learning_rate=0.1,
        rows=4,
        slope=-1.0,
        curvature=1.0,
        relative=1.0,
        absolute=0.1,
        standard_error=0.1,
    )


@dataclass
class Scene:
    """A run of one-second steps; what happens in it is written down in `events`."""

    losses: Callable[[int], float] = lambda step: 0.5
    """The training loss of each step."""
    evaluations: Callable[[int], Mapping[str, float] | None] = lambda step: {"validation": 0.4}
    """The losses of an evaluation after so many steps."""
    fresh: Callable[[int], bool] = lambda step: True
    signal_after: int | None = None
    """Steps after which a signal comes."""
    delay: int = 0
    """Steps after its own at which an estimate is handed over."""
    evaluation_seconds: float = 100.0
    start_seconds: float = 0.0
    """Time from the making of the clock to `run`."""
    position: Position = field(default_factory=Position)
    events: list[Any] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)
    pauses: list[StepTiming] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    reported: list[tuple[int, int]] = field(default_factory=list)
    """Step and age of every estimate that the observer was told of."""
    broken: int | None = None
    """The step of a save that found weights that are not finite."""
    polls: int = 0
    now: int = 0

    def pass_time(self, seconds: float) -> None:
        self.now += round(seconds * NANOSECONDS)

    # the feed
    last_wait = None

    def __next__(self) -> Any:
        step = self.position.step
        return SimpleNamespace(fresh=self.fresh(step), rows=4, epoch=0, start=4 * step)

    # the step, with its clock and worker
    clock: StepClock = field(init=False)

    @property
    def worker(self) -> Any:
        return self

    def __call__(self, pair: Any, *, step: int, learning_rate: float, measure: bool, plan: HorizonPlan) -> Trained:
        self.pass_time(1)
        if measure:
            self.in_flight.append(step)
        loss = torch.tensor(self.losses(step))
        checked = Checked(
            sizes=torch.stack([torch.tensor(0.0), loss.abs()]), names=["an input", "the loss"], loss=torch.tensor(0.5)
        )
        return Trained(loss=loss, checked=checked)

    # the worker
    def poll(self, *, step: int) -> list[Estimate]:
        return self._arrived(step, [origin for origin in self.in_flight if step - origin >= self.delay])

    def drain(self, *, step: int) -> list[Estimate]:
        self.events.append(("drain", self.position.step))
        return self.poll(step=step)

    def flush(self, *, step: int) -> list[Estimate]:
        return self._arrived(step, list(self.in_flight))

    def _arrived(self, step: int, origins: Sequence[int]) -> list[Estimate]:
        self.in_flight = [origin for origin in self.in_flight if origin not in origins]
        return [replace(estimate_of(origin), age=step - origin) for origin in origins]

    # the policy
    def wants(self, step: int) -> bool:
        return True

    def horizon(self, done: int) -> HorizonPlan:
        return NO_HORIZON

    def learning_rate(self, step: int, scheduled: float) -> float:
        return 2 * scheduled

    def observe(self, estimate: Estimate) -> str:
        return f"estimate of {estimate.step}, aged {estimate.age}"

    # the observer
    def on_step(self, record: Mapping[str, Any], timing: StepTiming, training_seconds: float) -> None:
        self.records.append(record)

    def on_pause(self, timing: StepTiming) -> None:
        self.pauses.append(timing)

    def on_estimate(self, estimate: Estimate) -> None:
        self.reported.append((estimate.step, estimate.age))
        self.events.append(f"report of {estimate.step}")

    def on_message(self, message: str, *, step: int) -> None:
        self.events.append(message)

    # the host
    def evaluate(self, position: Position) -> Mapping[str, float] | None:
        self.pass_time(self.evaluation_seconds)
        self.events.append(("evaluate", position.step))
        return self.evaluations(position.step)

    def save(self, position: Position, *, final: bool) -> None:
        self.events.append(("save", position.step, final))

    def agree(self, position: Position, *, scheduled: bool) -> None:
        pass

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        return scheduled

    def poll_save(self) -> None:
        self.polls += 1

    def save_asked(self) -> bool:
        return False

    def drain_save(self) -> None:
        self.events.append(("drain", self.position.step))

    def broken_weights(self) -> int | None:
        return self.broken

    def roll_back(self, position: Position, divergence: Divergence) -> bool:
        self.events.append(("roll back", position.step, divergence.since))
        return False

    def stopping(self) -> bool:
        return self.signal_after is not None and self.position.step >= self.signal_after

    def loop(
        self,
        *,
        budget: BudgetConfig,
        evaluation: EvalConfig | None = None,
        save_every: int | None = None,
        save_seconds: float | None = None,
    ) -> Loop:
        self.clock = StepClock(nanosecond_time=lambda: self.now)
        self.pass_time(self.start_seconds)
        scene = cast(Any, self)
        return Loop(
            feed=scene,
            train_step=scene,
            policy=scene,
            scheduled_rate=lambda step: 0.1 * (step + 1),
            timetable=Timetable(
                budget=budget,
                total_steps=budget.total_steps(10),
                evaluation=evaluation or EvalConfig(),
                checkpoint=CheckpointConfig(every_steps=save_every, every_seconds=save_seconds),
            ),
            host=scene,
            observer=scene,
            position=self.position,
        )

    def of(self, kind: str) -> list[int]:
        """The steps after which something was done."""
        return [event[1] for event in self.events if event[0] == kind]


def test_steps_are_numbered_and_take_the_policy_s_rate() -> None:
    scene = Scene(losses=lambda step: 0.5 - step / 10)
    assert scene.loop(budget=BudgetConfig(steps=3)).run() is Stop.BUDGET
    assert [record["step"] for record in scene.records] == [0, 1, 2]
    assert [record["loss"] for record in scene.records] == pytest.approx([0.5, 0.4, 0.3])
    assert [record["scheduled_rate"] for record in scene.records] == pytest.approx([0.1, 0.2, 0.3])
    assert [record["learning_rate"] for record in scene.records] == pytest.approx([0.2, 0.4, 0.6])
    assert (scene.position.step, scene.position.rows) == (3, 12)


def test_the_end_of_the_budget_is_evaluated_then_saved() -> None:
    scene = Scene()
    scene.loop(budget=BudgetConfig(steps=3)).run()
    done = [event for event in scene.events if event[0] in ("evaluate", "save")]
    assert done == [("evaluate", 3), ("save", 3, True)]


def test_an_ended_run_has_nothing_left_to_do() -> None:
    scene = Scene()
    loop = scene.loop(budget=BudgetConfig(steps=3))
    assert loop.ended() is None
    loop.run()
    assert loop.ended() is Stop.BUDGET
    assert scene.loop(budget=BudgetConfig(steps=4)).ended() is None


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (BudgetConfig(steps=7), 7),
        (BudgetConfig(epochs=2), 20),
        (BudgetConfig(epochs=0.25), 3),
        (BudgetConfig(epochs=1.1), 11),  # 1.1 · 10 is a little more than 11
        (BudgetConfig(steps=7, epochs=0.5), 5),
        (BudgetConfig(seconds=5), None),
    ],
)
def test_budget_in_steps(budget: BudgetConfig, steps: int | None) -> None:
    assert budget.total_steps(10) == steps


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_budget_without_meaning_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"budget\.seconds is .* positive"):
        BudgetConfig(seconds=value)


def test_time_budget_counts_training_only() -> None:
    scene = Scene(start_seconds=1000)
    loop = scene.loop(budget=BudgetConfig(seconds=5), evaluation=EvalConfig(every_steps=2), save_every=2)
    assert loop.run() is Stop.BUDGET
    assert scene.position.step == 5
    assert scene.position.training_seconds == pytest.approx(5)
    assert scene.of("evaluate") == [2, 4, 5]
    assert scene.pauses[0].seconds == pytest.approx(1000)
    assert [pause.phases["evaluation"] for pause in scene.pauses if pause.phases["evaluation"]] == [100.0] * 3


def test_evaluation_by_seconds_of_training() -> None:
    scene = Scene()
    scene.loop(budget=BudgetConfig(steps=8), evaluation=EvalConfig(every_seconds=3)).run()
    assert scene.of("evaluate") == [3, 6, 8]


@pytest.mark.parametrize("cadence", [{"save_every": 3}, {"save_seconds": 3.0}])
def test_checkpoints_between(cadence: dict[str, Any]) -> None:
    scene = Scene()
    scene.loop(budget=BudgetConfig(steps=8), **cadence).run()
    assert scene.of("save") == [3, 6, 8]


def test_a_resumed_run_does_not_save_again_what_it_came_from() -> None:
    scene = Scene(position=Position(step=3, training_seconds=3, last_checkpoint_step=3, last_checkpoint_seconds=3))
    scene.loop(budget=BudgetConfig(steps=5), save_every=3).run()
    assert scene.of("save") == [5]


def test_a_signal_ends_the_run_after_the_step_and_saves_it() -> None:
    scene = Scene(signal_after=2)
    assert scene.loop(budget=BudgetConfig(steps=5), evaluation=EvalConfig(every_steps=10)).run() is Stop.INTERRUPTED
    assert (scene.of("evaluate"), scene.of("save")) == ([], [2])


@pytest.mark.parametrize("steps", [2, 5])
def test_an_evaluation_that_a_signal_ended_is_repeated(steps: int) -> None:
    """In the midst of a run, and at its end."""
    budget, evaluation = BudgetConfig(steps=steps), EvalConfig(every_steps=2)
    scene = Scene()

    def cut_short(step: int) -> None:
        scene.signal_after = step

    scene.evaluations = cut_short
    assert scene.loop(budget=budget, evaluation=evaluation).run() is Stop.INTERRUPTED
    assert (scene.of("evaluate"), scene.of("save"), len(scene.records)) == ([2], [2], 2)

    again = Scene(position=scene.position)
    loop = again.loop(budget=budget, evaluation=evaluation)
    assert loop.ended() is None
    assert loop.run() is Stop.BUDGET
    assert again.of("evaluate") == ([2] if steps == 2 else [2, 4, 5])
    assert len(again.records) == steps - 2


def test_losses_that_stay_nonfinite_are_divergence() -> None:
    scene = Scene(losses=lambda step: math.nan if step >= 4 else 0.5)
    assert scene.loop(budget=BudgetConfig(steps=100)).run() is Stop.DIVERGED
    assert scene.position.step == 4 + NONFINITE_STEPS
    assert (scene.of("evaluate"), scene.of("save")) == ([], [])


def test_losses_that_recover_are_none() -> None:
    scene = Scene(losses=lambda step: math.inf if step % 2 else 0.5)
    assert scene.loop(budget=BudgetConfig(steps=41)).run() is Stop.BUDGET


def test_a_budget_that_ends_on_a_nonfinite_loss_has_diverged() -> None:
    scene = Scene(losses=lambda step: math.nan if step == 2 else 0.5)
    assert scene.loop(budget=BudgetConfig(steps=3)).run() is Stop.DIVERGED
    assert scene.of("save") == []


@pytest.mark.parametrize("every", [2, None])
def test_a_nonfinite_validation_loss_is_divergence(every: int | None) -> None:
    """Between, and at the end."""
    scene = Scene(evaluations=lambda step: {"validation": math.nan})
    assert scene.loop(budget=BudgetConfig(steps=4), evaluation=EvalConfig(every_steps=every)).run() is Stop.DIVERGED
    assert scene.position.step == (every or 4)
    assert scene.of("save") == []


def test_the_target_ends_a_run_and_keeps_it_ended() -> None:
    scene = Scene(evaluations=lambda step: {"test": 0.0, "validation": 0.5 - step / 100})
    budget, evaluation = BudgetConfig(steps=50, target_loss=0.46), EvalConfig(every_steps=2)
    loop = scene.loop(budget=budget, evaluation=evaluation)
    assert loop.run() is Stop.TARGET
    assert (scene.position.step, scene.of("save")) == (6, [6])
    assert loop.ended() is Stop.TARGET
    lower = scene.loop(budget=replace(budget, target_loss=0.42), evaluation=evaluation)
    assert lower.ended() is None
    assert lower.run() is Stop.TARGET
    assert scene.position.step == 10


def test_the_target_can_be_reached_by_the_last_evaluation() -> None:
    assert Scene().loop(budget=BudgetConfig(steps=2, target_loss=0.5)).run() is Stop.TARGET


def test_only_fresh_pairs_are_measured() -> None:
    scene = Scene(fresh=lambda step: step != 1)
    scene.loop(budget=BudgetConfig(steps=3)).run()
    assert [event for event in scene.events if "aged" in event] == ["estimate of 0, aged 0", "estimate of 2, aged 0"]


def test_a_checkpoint_waits_for_estimates_and_leaves_them_for_when_they_are_due() -> None:
    scene = Scene(delay=2)
    scene.loop(budget=BudgetConfig(steps=6), save_every=4).run()
    told = [event for event in scene.events if event[0] in ("drain", "save") or "aged" in event]
    assert told == [
        "estimate of 0, aged 2",
        "estimate of 1, aged 2",
        ("drain", 4),
        ("save", 4, False),
        "estimate of 2, aged 2",
        "estimate of 3, aged 2",
        ("drain", 6),
        ("drain", 6),
        ("drain", 6),
        ("save", 6, True),
    ]


@pytest.mark.parametrize("how", ["budget", "signal", "divergence"])
def test_estimates_due_after_the_end_are_reported_once_it_is_saved_and_never_acted_on(how: str) -> None:
    scene = Scene(delay=2, signal_after=5 if how == "signal" else None)
    if how == "divergence":
        scene.losses = lambda step: math.nan
    scene.loop(budget=BudgetConfig(steps=5)).run()
    assert scene.reported == [(0, 2), (1, 2), (2, 2), (3, 1), (4, 0)]
    assert [event for event in scene.events if "aged" in event] == [f"estimate of {step}, aged 2" for step in range(3)]
    if how != "divergence":
        assert scene.events.index(("save", 5, True)) < scene.events.index("report of 3")


def test_an_error_of_the_feed_reaches_the_caller() -> None:
    scene = Scene()

    def broken(step: int) -> bool:
        raise OSError("shard 3 is damaged")

    scene.fresh = broken
    with pytest.raises(OSError, match="shard 3"):
        scene.loop(budget=BudgetConfig(steps=3)).run()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"every_steps": 0}, r"eval\.every_steps is 0"),
        ({"rows": -5}, r"eval\.rows is -5"),
        ({"splits": ("test", "tset")}, r"eval\.splits names 'tset'"),
    ],
)
def test_evaluation_settings_are_checked(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvalConfig(**values)
