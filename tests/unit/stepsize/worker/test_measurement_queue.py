"""In flight → finished → due → handed over: which estimate at which step, and what is waited for."""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch

from stepsize.estimate import Estimate
from stepsize.measuring import Pending
from stepsize.worker.measurement_queue import Finished, MeasurementQueue
from tests.estimates import estimate


class Arrivals:
    """Measurements whose numbers arrive when the test says so; it notes which were waited for."""

    def __init__(self, queue: MeasurementQueue) -> None:
        self.queue = queue
        self.arrived: set[int] = set()
        self.waited: list[int] = []

    def measure(self, step: int, *, occupies: bool = True) -> None:
        def wait() -> None:
            self.waited.append(step)
            self.arrived.add(step)

        values = torch.tensor([float(step)]).double()
        pending = Pending(sizes={"b1": 1}, values=values, done=lambda: step in self.arrived, wait=wait)

        def make_estimate(numbers: dict[str, list[float]]) -> Estimate:
            assert step in self.arrived, "read before it was there"
            assert numbers == {"b1": [float(step)]}
            return estimate(step, 1.0)

        self.queue.put(step, pending, make_estimate, occupies=occupies)

    def taken(self, step: int | None = None) -> list[int]:
        return [one.step for one in self.queue.take(step)]


def test_without_a_delay_one_is_in_flight_and_taken_once_it_is_there():
    arrivals = Arrivals(queue := MeasurementQueue())
    assert queue.make_room()
    arrivals.measure(0)
    assert not queue.make_room()
    assert arrivals.taken(7) == []
    queue.put_finished(estimate(1, 0.0))
    assert arrivals.taken() == [1], "nothing was measured for it, so it waits for nothing"
    arrivals.arrived.add(0)
    assert queue.make_room()
    assert arrivals.taken() == [0]
    assert arrivals.taken() == []
    assert arrivals.waited == []


def test_what_does_not_occupy_the_queue_leaves_room():
    arrivals = Arrivals(queue := MeasurementQueue())
    arrivals.measure(0, occupies=False)
    assert queue.make_room()


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_with_a_delay_each_is_taken_at_its_step_however_early_it_is_there(delay):
    arrivals = Arrivals(queue := MeasurementQueue(delay))
    for step in range(20):
        assert queue.make_room()
        arrivals.measure(step)
        arrivals.arrived.add(step)
        assert arrivals.taken(step) == ([step - delay] if step >= delay else [])
    assert arrivals.waited == []


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_with_a_delay_a_late_one_is_waited_for_at_its_step_and_not_before(delay):
    arrivals = Arrivals(queue := MeasurementQueue(delay))
    for step in range(20):
        assert queue.make_room()
        arrivals.measure(step)
        assert arrivals.taken(step) == ([step - delay] if step >= delay else [])
        assert arrivals.waited == list(range(max(0, step - delay + 1)))


def test_whatever_arrives_when_the_same_is_taken_at_the_same_steps():
    takes = []
    for seed in range(20):
        draw = random.Random(seed)
        arrivals, taken, under_way = Arrivals(queue := MeasurementQueue(3)), [], deque()
        for step in range(50):
            if step % 10 < 6:
                assert queue.make_room()
                arrivals.measure(step)
                under_way.append(step)
            for _ in range(draw.randint(0, len(under_way))):
                arrivals.arrived.add(under_way.popleft())
            taken.append(arrivals.taken(step))
        takes.append(taken)
    assert all(taken == takes[0] for taken in takes)
    assert [step for taken in takes[0] for step in taken] == [step for step in range(50) if step % 10 < 6]


def test_steps_may_be_left_out_and_polls_may_jump():
    arrivals = Arrivals(MeasurementQueue(4))
    for step in (0, 3, 7, 8):
        arrivals.measure(step)
    assert arrivals.taken(3) == []
    assert arrivals.taken(11) == [0, 3, 7]
    assert arrivals.taken(11) == []
    assert arrivals.taken(100) == [8]


def test_a_queue_with_a_delay_has_room_for_one_more_than_it():
    arrivals = Arrivals(queue := MeasurementQueue(2))
    for step in range(6):
        assert queue.make_room()
        assert arrivals.waited == list(range(max(0, step - 2))), "for the oldest, as three are under way"
        arrivals.measure(step)
    assert arrivals.taken(1) == [], "finished, and still not due"
    assert arrivals.taken(5) == [0, 1, 2, 3]


def test_waiting_hands_nothing_over_and_taking_all_does():
    arrivals = Arrivals(queue := MeasurementQueue(4))
    arrivals.measure(0)
    arrivals.measure(1)
    queue.wait()
    assert arrivals.waited == [0, 1]
    assert arrivals.taken(3) == []
    assert arrivals.taken(4) == [0]
    arrivals.measure(5)
    assert [one.step for one in queue.take_all()] == [1, 5]
    assert queue.take_all() == arrivals.taken(99) == []


def test_what_is_restored_comes_first_and_when_it_was_due():
    arrivals = Arrivals(queue := MeasurementQueue(4))
    arrivals.measure(6)
    arrivals.measure(7)
    undelivered = queue.undelivered()
    assert [(one.estimate.step, one.due) for one in undelivered] == [(6, 10), (7, 11)]
    again = Arrivals(other := MeasurementQueue(4))
    again.measure(99)
    other.restore(undelivered)
    again.measure(8)
    assert again.taken(9) == []
    assert [again.taken(step) for step in (10, 11, 12)] == [[6], [7], [8]]
    immediate = MeasurementQueue()
    immediate.restore([*undelivered, Finished(estimate=estimate(9, 1.0), due=None)])
    assert [one.step for one in immediate.take(10)] == [6], "first in first out"
    assert [one.step for one in immediate.take(11)] == [7, 9]


def test_clearing_waits_for_what_still_reads_memory():
    arrivals = Arrivals(queue := MeasurementQueue(4))
    arrivals.measure(0)
    queue.clear()
    assert arrivals.waited == [0]
    assert queue.take_all() == []
