"""A worker with a delay: none dropped, each handed over at its age, stored and restored; rates that are tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from stepsize import Estimate, MeasurementError, Outcome, StepSizeWorker
from tests.cases import CASES
from tests.lanes import LaggingLane, random_lags
from trainer.records.serialization import deserialize, serialize

CASE = CASES["mlp_cross_entropy"]


class Training:
    """A small model trained step by step under a worker; the same steps give the same estimates."""

    def __init__(self, lane: LaggingLane | None = None, *, lr: Any = 0.1, **options: Any) -> None:
        self.model = CASE.model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.lane = lane
        self.worker = StepSizeWorker(self.model, self.optimizer, CASE.loss, lane=lane, **options)
        self.dropped = 0

    def step(self, step: int) -> None:
        inputs, targets = CASE.batch(2 * step)
        self.optimizer.zero_grad()
        CASE.torch_loss(self.model(*inputs), targets).backward()
        if self.lane is not None:
            self.lane.tick()
        b1 = CASE.batch(2 * step + 1)
        with self.worker.around_step(*b1, train_inputs=inputs, train_targets=targets, step=step) as measured:
            self.optimizer.step()
        self.dropped += not measured

    def run(self, first: int, stop: int) -> list[list[Estimate]]:
        """The estimates of each step's poll."""
        found = []
        for step in range(first, stop):
            self.step(step)
            found.append(self.worker.poll(step=step))
        return found


@pytest.mark.parametrize("lag", [0, 1, 4, 9, "random"])
@pytest.mark.parametrize("delay", [0, 1, 4])
def test_every_estimate_comes_at_its_age_and_is_what_it_is_without_a_delay(delay, lag):
    [plain] = zip(*Training().run(0, 12), strict=True)
    training = Training(LaggingLane(random_lags(9, seed=1) if lag == "random" else lag), delay=delay)
    found = training.run(0, 12)
    assert [[(one.step, one.age) for one in ones] for ones in found] == [
        [(step - delay, delay)] if step >= delay else [] for step in range(12)
    ]
    rest = training.worker.flush(step=11)
    assert [(one.step, one.age) for one in rest] == [(step, 11 - step) for step in range(12 - delay, 12)]
    numbers = [(one.step, one.slope, one.curvature, one.learning_rate) for ones in [*found, rest] for one in ones]
    assert numbers == [(one.step, one.slope, one.curvature, one.learning_rate) for one in plain]
    assert training.dropped == 0
    assert training.worker.counts.total() == 12


def test_the_host_waits_for_a_late_estimate_at_the_step_where_it_is_due():
    """Four steps late at a delay of two: the first wait is at tick 3, when the estimate of tick 1 is due."""
    lane = LaggingLane(4)
    Training(lane, delay=2).run(0, 6)
    assert lane.waits == [3, 4, 5, 6]
    early = LaggingLane(2)
    Training(early, delay=2).run(0, 6)
    assert early.waits == []


def test_a_loop_that_does_not_poll_holds_delay_and_one_in_flight():
    lane = LaggingLane(100)
    training = Training(lane, delay=2)
    for step in range(8):
        training.step(step)
    assert lane.most_in_flight == 3
    assert [one.step for one in training.worker.poll(step=7)] == [0, 1, 2, 3, 4, 5]


def test_drain_waits_and_hands_over_what_is_due_alone():
    lane = LaggingLane(100)
    training = Training(lane, delay=2)
    training.step(0)
    training.step(1)
    assert training.worker.drain(step=1) == []
    assert lane.waits == [2, 2]
    assert [(one.step, one.age) for one in training.worker.poll(step=2)] == [(0, 2)]


def test_without_a_delay_drain_hands_over_all():
    training = Training(LaggingLane(100))
    training.step(0)
    assert training.worker.poll(step=0) == []
    assert [(one.step, one.age) for one in training.worker.drain(step=3)] == [(0, 3)]


def test_a_delay_counts_steps():
    with pytest.raises(MeasurementError, match=r"delay of 2 steps .* give step="):
        Training(delay=2).worker.poll()
    for wrong in (-1, 1.5, True):
        with pytest.raises(MeasurementError, match=f"delay: {wrong}"):
            Training(delay=wrong)
    with pytest.raises(MeasurementError, match="delay: after 4 steps every estimate would be older than max_age = 3"):
        Training(delay=4, max_age=3)
    Training(delay=3, max_age=3)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """As a file of plain JSON would give it back, and as a checkpoint does."""
    form, tensors = serialize(json.loads(json.dumps(state)))
    return deserialize(json.loads(json.dumps(form, allow_nan=False)), tensors)


@pytest.mark.parametrize("cut", [2, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"estimators": ("unbiased", "biased", "hybrid"), "per_group": True, "diagnostics": "full"}],
    ids=["plain", "everything"],
)
def test_a_restored_worker_hands_over_what_the_first_would_have(options, cut):
    whole = Training(LaggingLane(3), delay=4, **options)
    expected = whole.run(0, 10)
    first = Training(LaggingLane(3), delay=4, **options)
    assert first.run(0, cut) == expected[:cut]
    state = through_json(first.worker.state_dict())
    assert [one["due"] for one in state["undelivered"]] == [step + 4 for step in range(max(0, cut - 4), cut)]
    first.run(cut, 9)  # what comes after it leaves the state alone
    second = Training(LaggingLane(1), delay=4, **options)
    for step in range(cut):
        second.step(step)
    second.worker.load_state_dict(state)
    assert second.run(cut, 10) == expected[cut:]
    assert second.worker.counts == whole.worker.counts


def test_numbers_that_are_not_finite_are_stored_too():
    training = Training(LaggingLane(0), delay=2)
    with torch.no_grad():
        next(training.model.parameters()).fill_(torch.inf)
    training.step(0)
    state = through_json(training.worker.state_dict())
    [kept] = training.worker.flush(step=0)
    assert kept.outcome is Outcome.NONFINITE
    second = Training(delay=2)
    second.worker.load_state_dict(state)
    assert second.worker.flush(step=0) == [kept]


def test_a_state_of_counts_alone_is_read():
    training = Training(delay=2)
    training.worker.load_state_dict({"counts": {"ok": 3}})
    assert training.worker.counts == {"ok": 3}
    assert training.worker.poll(step=9) == []


def test_a_rate_that_is_a_tensor_comes_with_the_numbers():
    """It is the one that the optimizer stepped with, whatever a schedule makes of the tensor right after."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    training = Training(LaggingLane(3), lr=rate, delay=2)

    def move_on(*_: object) -> None:
        rate.fill_(7.0)

    training.optimizer.register_step_post_hook(move_on)
    found = []
    for step in range(4):
        rate.fill_(0.1 / (step + 1))
        training.step(step)
        found += training.worker.poll(step=step)
    found += training.worker.flush(step=3)
    assert [one.learning_rate for one in found] == [0.1 / (step + 1) for step in range(4)]


def test_a_dropped_estimate_has_its_rate_also_where_that_is_a_tensor():
    rate = torch.tensor(0.1, dtype=torch.float64)
    lane = LaggingLane(2)
    training = Training(lane, lr=rate)
    found = []
    for step in range(4):
        rate.fill_(0.1 / (step + 1))
        training.step(step)
        found += training.worker.poll(step=step)
    assert training.dropped == 2
    found += training.worker.drain(step=3)
    assert [(one.step, one.outcome is Outcome.DROPPED) for one in found] == [
        (0, False),
        (1, True),
        (2, False),
        (3, True),
    ]
    assert [one.learning_rate for one in found] == [0.1 / (step + 1) for step in range(4)]


def test_a_rate_of_each_group_stays_its_own():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5)).double()
    groups = [
        {"params": model[0].parameters(), "lr": torch.tensor(0.5, dtype=torch.float64)},
        {"params": model[1].parameters(), "lr": 0.25},
    ]
    optimizer = torch.optim.SGD(groups)
    worker = StepSizeWorker(model, optimizer, CASE.loss, per_group=True, delay=0)
    inputs, targets = CASE.batch(0)
    CASE.torch_loss(model(*inputs), targets).backward()
    with worker.around_step(*CASE.batch(1), step=0):
        optimizer.step()
    [found] = worker.poll(step=0)
    assert found.groups is not None
    assert found.learning_rate == 0.5
    for group, rate in zip(found.groups, (0.5, 0.25), strict=True):
        assert group.relative is not None
        assert group.absolute == pytest.approx(rate * group.relative, rel=1e-15)
