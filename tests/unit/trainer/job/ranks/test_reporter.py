"""When ranks tell one another where their time went, what rank 0 makes of it, and whose time is communication."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ops.step_clock import PHASES, StepClock
from tests.rank_threads import ThreadGroup, on_ranks
from trainer.job.ranks import RankReporter, communication_timed
from trainer.job.ranks.reporter import GATHER_STEPS, sent_by_purpose
from trainer.ranks import ALONE, Ranks


class Told:
    """A rank's outlets: its clock, a second of whose step is `forward`, and what it was told."""

    def __init__(self, rank: int) -> None:
        self.rank, self.steps = rank, 0
        self.events: list[dict[str, Any]] = []
        self.times: list[Any] = []
        self.sent: Counter[str] = Counter()
        self.metrics = SimpleNamespace(ranks=SimpleNamespace(times=self.times.append, sent=self.sent.update))
        self.live = SimpleNamespace(ranks=lambda times: None)
        self.clock = self.directory = self

    def totals(self) -> dict[str, float]:
        """Rank 1 takes a second and a half for `forward`; whoever is through waits for it."""
        forward = self.steps * (1.5 if self.rank == 1 else 1.0)
        talk = self.steps * 2.0 - forward
        return dict.fromkeys(PHASES, 0.0) | {"forward": forward, "communication": talk}

    def event(self, event: str, **values: Any) -> None:
        self.events.append({"event": event, **values})


def reporting(group: ThreadGroup, steps: list[int], records: list[int]) -> Told:
    """A run whose ranks agree at each of `steps` in turn, and record where `records` has that step."""
    ranks = Ranks(rank=group.rank, ranks=group.ranks)
    cast(Any, ranks).gather = lambda numbers: group.gather(list(numbers))
    ranks.sent_bytes["ids"] = 1000  # of an earlier job of this process
    told = Told(group.rank)
    reporter = RankReporter(ranks=ranks, outlets=cast(Any, told))
    for step in steps:
        told.steps += 1
        ranks.sent_bytes["ids"] += 10 * (group.rank + 1)
        reporter.between_steps()
        if step in records:
            reporter.record(step)
    return told


def test_ranks_gather_behind_the_first_step_and_then_every_so_many() -> None:
    steps = list(range(100, 100 + 2 * GATHER_STEPS + 10))
    first, second = on_ranks(2, lambda group: reporting(group, steps, []))
    assert [times.steps for times in first.times] == [GATHER_STEPS, GATHER_STEPS]
    for times in first.times:
        assert (times.slowest, times.longest_phase) == (1, "forward")
        assert times.seconds["forward"] == pytest.approx([GATHER_STEPS, 1.5 * GATHER_STEPS])
        assert sum(times.mean.values()) == pytest.approx(2.0 * GATHER_STEPS)
    assert first.sent["ids"] == (1 + 2 * GATHER_STEPS) * 30  # of both ranks, from the beginning of this job on
    assert len(second.times) == len(first.times)
    assert not first.events


def test_an_event_holds_what_came_since_the_last_one_and_an_evaluation_and_a_save_at_one_step_write_one() -> None:
    def act(group: ThreadGroup) -> Told:
        return reporting(group, list(range(81)), [70, 75, 80])

    told = on_ranks(2, act)[0]
    assert [(event["event"], event["step"], event["steps"]) for event in told.events] == [
        ("ranks", 70, 70),
        ("ranks", 75, 5),
        ("ranks", 80, 5),
    ]
    assert told.events[0]["phases"] == {"forward": [70.0, 105.0], "communication": [70.0, 35.0]}
    assert told.events[1]["sent_bytes"] == {"ids": 5 * 30}


def test_a_second_record_at_a_step_writes_nothing() -> None:
    def act(group: ThreadGroup) -> Told:
        ranks = Ranks(rank=group.rank, ranks=group.ranks)
        cast(Any, ranks).gather = lambda numbers: group.gather(list(numbers))
        told = Told(group.rank)
        reporter = RankReporter(ranks=ranks, outlets=cast(Any, told))
        for _ in range(5):
            told.steps += 1
            reporter.between_steps()
        reporter.record(4)
        reporter.record(4)
        return told

    assert [len(told.events) for told in on_ranks(2, act)] == [1, 1]


def test_a_run_that_goes_back_tells_its_ranks_again() -> None:
    steps = [*range(80), *range(20, 80)]
    told = on_ranks(2, lambda group: reporting(group, steps, [79]))[0]
    assert [times.steps for times in told.times] == [GATHER_STEPS, 29, GATHER_STEPS, 10]
    assert [event["step"] for event in told.events] == [79, 79]
    assert sum(times.seconds["forward"][0] for times in told.times) == pytest.approx(139)


def test_a_device_that_is_behind_leaves_its_first_step_out_all_the_same() -> None:
    """What a step took is known two steps later: the one that compiles is not of the stretch behind it."""

    class Behind(Told):
        def totals(self) -> dict[str, float]:
            return dict.fromkeys(PHASES, 0.0) | {"forward": 99.0 + self.steps if self.steps else 0.0}

    def act(group: ThreadGroup) -> Told:
        ranks = Ranks(rank=group.rank, ranks=group.ranks)
        cast(Any, ranks).gather = lambda numbers: group.gather(list(numbers))
        told = Behind(group.rank)
        reporter = RankReporter(ranks=ranks, outlets=cast(Any, told))
        for launched in range(1, GATHER_STEPS + 4):
            told.steps = max(launched - 2, 0)
            reporter.between_steps()
        return told

    [times] = on_ranks(2, act)[0].times
    assert (times.steps, times.seconds["forward"][0]) == (GATHER_STEPS, GATHER_STEPS)


def test_alone_nothing_is_told() -> None:
    told = Told(0)
    reporter = RankReporter(ranks=ALONE, outlets=cast(Any, told))
    for _ in range(2 * GATHER_STEPS):
        told.steps += 1
        reporter.between_steps()
    reporter.record(2 * GATHER_STEPS)
    assert not told.times
    assert not told.events


def test_no_byte_is_lost_in_naming_what_it_was_for() -> None:
    sent = {"gradients of rows": 1, "rows for α*": 2, "α*": 4, "ids": 8, "something new": 16}
    named = {name: size for name, size in sent_by_purpose(sent).items() if size}
    assert named == {"row_gradients": 1, "alpha_rows": 2, "alpha": 4, "ids": 8, "other": 16}


def test_only_the_loop_s_thread_is_timed_and_only_while_the_job_lasts() -> None:
    now = [0]
    clock = StepClock(nanosecond_time=lambda: now[0])
    ranks = Ranks(rank=0, ranks=2)

    def talk() -> None:
        with ranks.timed():
            now[0] += 5

    with communication_timed(ranks, clock):
        with clock.phase("backward"):
            talk()
            thread = threading.Thread(target=talk)  # autograd's, on CUDA
            thread.start()
            thread.join()
        spent = clock.finish_step().phase_nanoseconds
    assert (spent["communication"], spent["backward"]) == (5, 5)
    assert ranks.timed is nullcontext
    with communication_timed(ALONE, clock):
        assert ALONE.timed is nullcontext
