"""The phases of the step clock sum to wall time, whatever is nested in what."""

from __future__ import annotations

import random
import threading

import pytest

from ops.bound import BoundKind
from ops.step_clock import MARKS, NANOSECONDS, PHASES, StepClock


class FakeTime:
    """A time source in nanoseconds that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def clock(time: FakeTime) -> StepClock:
    return StepClock(nanosecond_time=time)


def test_time_outside_phases_is_other(clock: StepClock, time: FakeTime) -> None:
    time.now += 5
    with clock.phase("forward"):
        time.now += 7
    time.now += 11
    timing = clock.finish_step()
    assert timing.nanoseconds == 23
    assert timing.phase_nanoseconds["forward"] == 7
    assert timing.phase_nanoseconds["other"] == 16


def test_inner_phase_is_not_counted_to_the_outer(clock: StepClock, time: FakeTime) -> None:
    with clock.phase("optimizer"):
        time.now += 3
        with clock.phase("alpha"):
            time.now += 10
            with clock.phase("transfer"):
                time.now += 100
            time.now += 20
        time.now += 4
    spent = clock.finish_step().phase_nanoseconds
    assert (spent["optimizer"], spent["alpha"], spent["transfer"], spent["other"]) == (7, 30, 100, 0)


def test_a_phase_inside_itself_is_counted_once(clock: StepClock, time: FakeTime) -> None:
    with clock.phase("forward"):
        time.now += 2
        with clock.phase("forward"):
            time.now += 3
    assert clock.finish_step().phase_nanoseconds["forward"] == 5


def test_a_phase_that_raises_ends(clock: StepClock, time: FakeTime) -> None:
    def backward() -> None:
        with clock.phase("backward"):
            time.now += 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        backward()
    time.now += 40
    spent = clock.finish_step().phase_nanoseconds
    assert (spent["backward"], spent["other"]) == (2, 40)


def test_a_step_finished_inside_a_phase_splits_it(clock: StepClock, time: FakeTime) -> None:
    with clock.phase("evaluation"):
        time.now += 2
        first = clock.finish_step()
        time.now += 3
    second = clock.finish_step()
    assert first.phase_nanoseconds["evaluation"] == 2
    assert second.phase_nanoseconds["evaluation"] == 3


@pytest.mark.parametrize("seed", range(5))
def test_phases_sum_to_wall_time_for_any_nesting(clock: StepClock, time: FakeTime, seed: int) -> None:
    rng = random.Random(seed)

    def nest(depth: int) -> None:
        time.now += rng.randrange(1000)
        if depth and rng.random() < 0.9:
            with clock.phase(rng.choice(PHASES)):
                nest(depth - 1)
            time.now += rng.randrange(1000)
            nest(depth - 1)

    start = time.now
    total: dict[str, int] = dict.fromkeys(PHASES, 0)
    for _ in range(20):
        nest(5)
        before = time.now
        timing = clock.finish_step() if rng.random() < 0.5 else clock.finish_outside()
        assert sum(timing.phase_nanoseconds.values()) == timing.nanoseconds
        assert time.now == before
        for name, spent in timing.phase_nanoseconds.items():
            total[name] += spent
    assert sum(total.values()) == time.now - start
    assert clock.totals() == {name: spent / 1e9 for name, spent in total.items()}


def test_the_real_clock_loses_nothing() -> None:
    clock = StepClock()
    for _ in range(50):
        with clock.phase("forward"), clock.phase("transfer"):
            sum(range(100))
        timing = clock.finish_step()
        assert sum(timing.phase_nanoseconds.values()) == timing.nanoseconds > 0
        assert sum(timing.phases.values()) == pytest.approx(timing.seconds, rel=1e-12)


def test_what_is_open_grows_until_it_is_finished(clock: StepClock, time: FakeTime) -> None:
    time.now += 5 * NANOSECONDS
    with clock.phase("data_wait"):
        time.now += 3 * NANOSECONDS
        assert {name: spent for name, spent in clock.open_phases().items() if spent} == {"other": 5, "data_wait": 3}
        time.now += 4 * NANOSECONDS
        assert clock.open_phases()["data_wait"] == 7
    assert clock.totals()["data_wait"] == 0
    clock.finish_step()
    assert not any(clock.open_phases().values())
    assert clock.totals()["data_wait"] == 7


def test_an_unknown_phase_is_refused_with_the_known_ones(clock: StepClock) -> None:
    with pytest.raises(ValueError, match=r"'foward'.*use one of data_wait"), clock.phase("foward"):
        pass


def step(clock: StepClock, time: FakeTime, *, waiting: int, computing: int) -> None:
    with clock.phase("data_wait"):
        time.now += waiting
    with clock.phase("forward"):
        time.now += computing
    clock.finish_step()


def test_bound_is_unknown_before_the_first_step(clock: StepClock) -> None:
    assert clock.bound().kind is BoundKind.UNKNOWN
    assert str(clock.bound()) == "no step finished yet"


@pytest.mark.parametrize(
    ("waiting", "kind", "sentence"),
    [
        (3, BoundKind.COMPUTE, "compute-bound: 3 % of the time waiting for data"),
        (10, BoundKind.DATA, "data-bound: 10 % of the time waiting for data"),
        (95, BoundKind.DATA, "data-bound: 95 % of the time waiting for data"),
    ],
)
def test_bound_follows_the_share_of_waiting(
    clock: StepClock, time: FakeTime, waiting: int, kind: BoundKind, sentence: str
) -> None:
    step(clock, time, waiting=waiting, computing=100 - waiting)
    bound = clock.bound()
    assert bound.kind is kind
    assert bound.data_share == waiting / 100
    assert str(bound) == sentence


def pause(clock: StepClock, time: FakeTime, phase: str, nanoseconds: int) -> None:
    with clock.phase(phase):
        time.now += nanoseconds
    clock.finish_outside()


def test_pauses_count_and_bound_training_when_they_take_most_of_the_time(clock: StepClock, time: FakeTime) -> None:
    step(clock, time, waiting=500, computing=500)
    for _ in range(10):
        step(clock, time, waiting=3, computing=20)
        pause(clock, time, "evaluation", 70)
        pause(clock, time, "checkpoint", 7)
    bound = clock.bound()
    assert (bound.kind, bound.data_share, bound.pause_share) == (BoundKind.EVALUATION, 0.03, 0.77)
    assert str(bound) == "evaluation-bound: 3 % of the time waiting for data, 77 % evaluating and saving"
    assert clock.recent_phases()["evaluation"] == 700e-9
    assert sum(clock.recent_phases().values()) == pytest.approx(bound.seconds)


def talk(clock: StepClock, time: FakeTime, phase: str, *, talking: int, beside: int) -> None:
    with clock.phase(phase):
        time.now += beside
        with clock.phase("communication"):
            time.now += talking


def test_time_spent_with_other_ranks_is_communication_wherever_it_passes(clock: StepClock, time: FakeTime) -> None:
    talk(clock, time, "backward", talking=30, beside=70)
    spent = clock.finish_step().phase_nanoseconds
    talk(clock, time, "evaluation", talking=40, beside=5)
    pause = clock.finish_outside().phase_nanoseconds
    assert (spent["communication"], spent["backward"]) == (30, 70)
    assert (pause["communication"], pause["evaluation"]) == (40, 5)
    assert clock.totals()["communication"] == pytest.approx(70 / NANOSECONDS)
    assert clock.totals().keys() == spent.keys() == pause.keys() == set(PHASES)
    assert sum(clock.recent_phases().values()) == pytest.approx(145 / NANOSECONDS)


def test_what_the_loop_is_at_says_what_communication_is_part_of(clock: StepClock, time: FakeTime) -> None:
    with clock.phase("evaluation"), clock.phase("communication"):
        open_phase = clock.open_phase()
        assert (open_phase.name, open_phase.within) == ("communication", "evaluation")
    with clock.phase("communication"):
        assert clock.open_phase().within == "other"
    with clock.phase("forward"):
        assert clock.open_phase().within == "forward"


@pytest.mark.parametrize(
    ("training", "talking", "in_evaluation", "kind"),
    [
        (60, 40, 0, BoundKind.COMPUTE),
        (40, 60, 0, BoundKind.COMMUNICATION),
        (40, 0, 60, BoundKind.EVALUATION),  # fewer evaluations make it faster, whatever they pass with
        (60, 0, 40, BoundKind.COMPUTE),
    ],
)
def test_a_run_that_mostly_waits_for_other_ranks_is_bound_by_that(
    training: int, talking: int, in_evaluation: int, kind: BoundKind
) -> None:
    time = FakeTime()
    clock = StepClock(nanosecond_time=time)
    step(clock, time, waiting=0, computing=0)
    for _ in range(3):
        talk(clock, time, "forward", talking=talking, beside=training)
        clock.finish_step()
        talk(clock, time, "evaluation", talking=in_evaluation, beside=0)
        clock.finish_outside()
    bound = clock.bound()
    assert bound.kind is kind
    assert bound.communication_share == pytest.approx(talking / 100)
    assert bound.pause_share == pytest.approx(in_evaluation / 100)
    told = f"{talking} % communicating with other ranks"
    assert (told in str(bound)) is bool(talking)


def test_a_wait_that_is_open_counts(clock: StepClock, time: FakeTime) -> None:
    for _ in range(3):
        step(clock, time, waiting=0, computing=100)
    assert clock.waiting_seconds() == 0
    with clock.phase("data_wait"):
        time.now += 300
        assert clock.bound().kind is BoundKind.DATA
        assert clock.bound().data_share == 0.6
        assert clock.waiting_seconds() == 300e-9


def test_bound_forgets_what_left_the_window(time: FakeTime) -> None:
    clock = StepClock(window_seconds=1000e-9, nanosecond_time=time)
    for waiting in (100, 50, 10):
        for _ in range(30):
            step(clock, time, waiting=waiting, computing=100 - waiting)
    bound = clock.bound()
    assert (bound.data_share, bound.seconds) == (0.1, 1000e-9)
    step(clock, time, waiting=0, computing=500)
    assert clock.bound().data_share == 0.05


def test_of_an_evaluation_longer_than_the_window_the_window_is_full(time: FakeTime) -> None:
    """Also after its end: an hour's evaluation is forgotten as fast as anything else."""
    clock = StepClock(window_seconds=1000e-9, nanosecond_time=time)
    for _ in range(20):
        step(clock, time, waiting=0, computing=100)
    with clock.phase("evaluation"):
        time.now += 50_000
        assert clock.recent_phases()["evaluation"] == 1000e-9
    clock.finish_outside()
    step(clock, time, waiting=0, computing=400)
    assert clock.recent_phases()["evaluation"] == 600e-9
    assert clock.recent_phases()["forward"] == 400e-9


def test_the_window_is_bounded_in_memory(time: FakeTime) -> None:
    clock = StepClock(window_seconds=1000e-6, nanosecond_time=time)
    for _ in range(10_000):
        step(clock, time, waiting=1, computing=999)
    assert len(clock._marks) <= MARKS + 2
    assert clock.bound().seconds == pytest.approx(1000e-6)


def test_readers_in_other_threads_see_whole_intervals(clock: StepClock, time: FakeTime) -> None:
    """A reader that comes while an interval is being added up sees all of it or nothing."""
    seen: list[dict[str, float]] = []
    reader = threading.Thread(target=lambda: seen.append(clock.totals()))

    class Interrupted(dict[str, int]):
        """Lets the reader in, were it possible, once the first half of the phases is added."""

        def __setitem__(self, phase: str, nanoseconds: int) -> None:
            super().__setitem__(phase, nanoseconds)
            if phase == "optimizer":
                reader.start()
                reader.join(timeout=0.05)

    clock._totals = Interrupted(clock._totals)
    for phase in ("forward", "evaluation"):
        with clock.phase(phase):
            time.now += 1_000
    clock.finish_step()
    reader.join()
    assert [totals["evaluation"] for totals in seen] == [totals["forward"] for totals in seen] == [1e-6]


def test_the_first_step_is_kept_apart_once_there_is_another() -> None:
    now = [0]
    clock = StepClock(nanosecond_time=lambda: now[0])
    assert clock.first_step is None
    for waiting in (80, 1, 1):
        with clock.phase("data_wait"):
            now[0] += waiting * NANOSECONDS
        with clock.phase("forward"):
            now[0] += 19 * NANOSECONDS
        clock.finish_step()
        if waiting == 80:
            assert clock.bound().data_share == pytest.approx(80 / 99)
    first = clock.first_step
    assert first is not None
    assert (first.seconds, first.phases["data_wait"]) == (99, 80)
    assert clock.bound().data_share == pytest.approx(1 / 20)
    assert clock.recent_phases()["data_wait"] == 2
    assert clock.totals()["data_wait"] == 82


def test_a_wait_for_rows_that_is_open_is_in_the_verdict_and_the_shares(clock: StepClock, time: FakeTime) -> None:
    for _ in range(3):
        with clock.phase("forward"):
            time.now += NANOSECONDS
        clock.finish_step()
    assert clock.bound().kind is BoundKind.COMPUTE
    with clock.phase("data_wait"):
        time.now += 6 * NANOSECONDS
        assert clock.bound().kind is BoundKind.DATA
        assert clock.recent_phases()["data_wait"] == 6.0


def test_a_wait_for_a_log_to_grow_is_in_no_verdict(clock: StepClock, time: FakeTime) -> None:
    def steps(count: int) -> None:
        for _ in range(count):
            with clock.phase("data_wait"):
                time.now += NANOSECONDS // 100
            with clock.phase("forward"):
                time.now += NANOSECONDS
            clock.finish_step()

    for _ in range(100):
        with clock.pause_phase("data_wait"):
            time.now += NANOSECONDS
        clock.leave_out(1.0)
        assert clock.bound().kind is BoundKind.UNKNOWN
    clock.finish_outside()
    with clock.pause_phase("data_wait"):
        time.now += 60 * NANOSECONDS
        assert clock.bound().kind is BoundKind.DATA, "that one is a reader's"
    clock.finish_outside()
    steps(30)
    before = clock.bound().data_share
    for _ in range(1000):
        with clock.pause_phase("data_wait"):
            time.now += NANOSECONDS
        clock.leave_out(1.0)
        assert clock.bound().kind is BoundKind.COMPUTE
    clock.finish_outside()
    assert clock.bound().data_share == pytest.approx(before)
    assert clock.totals()["data_wait"] == pytest.approx(1160.3)
    steps(400)
    assert clock.bound().data_share == pytest.approx(before, rel=0.05)


def test_a_run_that_never_got_its_first_rows_is_bound_by_data(clock: StepClock, time: FakeTime) -> None:
    with clock.pause_phase("data_wait"):
        time.now += NANOSECONDS
        assert clock.bound().kind is BoundKind.UNKNOWN
        time.now += 60 * NANOSECONDS
        assert clock.bound().kind is BoundKind.DATA


def test_what_the_loop_is_at_is_known_with_its_beginning(clock: StepClock, time: FakeTime) -> None:
    assert clock.open_phase().name == "other"
    with clock.phase("optimizer"):
        began = clock.open_phase().since
        time.now += 2 * NANOSECONDS
        assert (clock.open_phase().name, clock.open_phase().seconds) == ("optimizer", 2.0)
        assert clock.open_phase().since == began
        with clock.phase("alpha"):
            time.now += NANOSECONDS
            assert (clock.open_phase().name, clock.open_phase().seconds) == ("alpha", 1.0)
        assert (clock.open_phase().name, clock.open_phase().seconds) == ("optimizer", 0.0)
    assert clock.open_phase().steps == 0
    clock.finish_step()
    assert clock.open_phase().steps == 1
