"""Two ranks of one run, disturbed: killed, told to stop, out of room, late, with other clocks, with damage, diverging.

The undisturbed run of two ranks is what each ends as, to the last bit. `python -m tests.faults.ranks` does the same at
many random moments.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.forked_ranks import ForkedRanks, fault
from tests.faults.launched_ranks import OWN, TORCHRUN, LaunchedRanks
from tests.resume import lasting, same_bits
from tests.tiny_data import flip_in_row_group, write_tiny
from trainer.records import read_records, verify_checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is stopped")

STEPS = 40
SETTINGS = """
[data]
path = "{data}"
batch_rows = 8
shuffle = "rows"
[model]
table_rows = 65
embedding_dim = 4
bottom = [4]
top = [4, 1]
[optimizer]
average = "ema"
[stepsize]
policy = "auto"
interval = 5
count = 5
[budget]
steps = 40
[eval]
every_steps = 16
[checkpoint]
every_steps = 10
keep = 10
keep_best = false
[ranks]
timeout_seconds = 60
[metrics]
port = -1
"""


class Runs:
    """A run's configuration, processes to train it, and how it ends undisturbed."""

    def __init__(self, folder: Path, server: ForkedRanks) -> None:
        self.folder, self.server = folder, server
        self.data = write_tiny(folder / "data", {"train": [[20, 20]] * 6, "validation": [[17]], "test": [[16]]})
        self.config = folder / "config.toml"
        self.config.write_text(SETTINGS.format(data=self.data), encoding="utf-8")
        self.whole = folder / "whole"
        session = server.train(self.config, self.whole)
        assert session.end() == [0, 0], (session.said(0), session.said(1))

    def ends_as_whole(self, run: Path) -> None:
        """Asserts that a run ended as the undisturbed one."""
        same_end(run, self.whole)

    def goes_on(self, run: Path) -> None:
        """Asserts that the same command ends a run that was disturbed as the undisturbed one."""
        session = self.server.train(self.config, run)
        assert session.end() == [0, 0], (session.said(0), session.said(1))
        self.ends_as_whole(run)


def same_end(run: Path, whole: Path) -> None:
    """Asserts that two runs ended alike to the last bit, and that the checkpoints of the first are sound."""
    (tensors, steps, estimates), (expected, all_steps, all_estimates) = lasting(run), lasting(whole)
    assert steps == all_steps
    assert estimates == all_estimates
    assert evaluations(run) == evaluations(whole)
    assert same_bits(tensors, expected)
    assert all(health.damage is None for health in verify_checkpoints(run))


def evaluations(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "training_seconds", "time", "unix_time")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_records(run / "evals.jsonl")
    ]


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run / "events.jsonl") if record["event"] in kinds]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("ranks")
    with ForkedRanks(folder) as server:
        yield Runs(folder, server)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_killed_in_a_step_ends_the_other_and_the_same_command_continues(
    runs: Runs, tmp_path: Path, dying: int
) -> None:
    run = tmp_path / "run"
    killed = fault("signal_at", step=23 + dying, number=signal.SIGKILL)
    session = runs.server.train(runs.config, run, faults={dying: killed})
    codes = session.end()
    assert (codes[dying], codes[1 - dying]) == (-9, 74), session.said(1 - dying)
    last = session.said(1 - dying).strip().splitlines()[-1]
    assert f"rank {1 - dying} of 2 at step {23 + dying}" in last
    runs.goes_on(run)


@pytest.mark.parametrize(("dying", "part", "after"), [(0, 3, False), (0, 3, True), (1, 2, False), (1, 3, False)])
def test_a_rank_killed_in_a_save_leaves_the_old_or_the_new_checkpoint(
    runs: Runs, tmp_path: Path, dying: int, part: int, after: bool
) -> None:
    run = tmp_path / "run"
    died = fault("die_in_save", save=2, part=part, after=after)
    session = runs.server.train(runs.config, run, faults={dying: died})
    codes = session.end()
    assert (codes[dying], codes[1 - dying]) == (-9, 74), session.said(1 - dying)
    named = [name for name in checkpoints(run) if not name.startswith(".") and name.startswith("step-")]
    assert named in (["step-00000010"], ["step-00000010", "step-00000020"]), checkpoints(run)
    runs.goes_on(run)
    assert [name for name in checkpoints(run) if not name.startswith("step-")] == []


@pytest.mark.parametrize(
    ("told", "number"),
    [((0,), signal.SIGTERM), ((1,), signal.SIGTERM), ((0, 1), signal.SIGTERM), ((1, 0), signal.SIGINT)],
)
def test_a_stop_told_to_any_rank_is_one_checkpoint_at_one_step(
    runs: Runs, tmp_path: Path, told: tuple[int, ...], number: signal.Signals
) -> None:
    run, step = tmp_path / "run", 17
    # at different steps where several are told, as by a scheduler that goes from one to the next
    faults = {rank: fault("signal_at", step=step + place, number=number) for place, rank in enumerate(told)}
    session = runs.server.train(runs.config, run, faults=faults)
    assert session.end() == [143, 143], (session.said(0), session.said(1))
    assert checkpoints(run) == ["step-00000010", "step-00000018"]
    assert [(stop["step"], stop["reason"]) for stop in events(run, "stop")] == [(18, "interrupted")]
    runs.goes_on(run)


@pytest.mark.parametrize("told", [0, 1])
def test_a_rank_told_to_stop_twice_leaves_at_once(runs: Runs, tmp_path: Path, told: int) -> None:
    run = tmp_path / "run"
    session = runs.server.train(runs.config, run, faults={told: fault("interrupted_at", step=20)})
    codes = session.end()
    assert (codes[told], codes[1 - told]) == (143, 74), (session.said(0), session.said(1))
    last = session.said(1 - told).strip().splitlines()[-1]
    assert last == f"alphastream: rank {told} has stopped: a signal ended it at once"
    # that of step 20 may have been under way
    assert checkpoints(run)[0] == "step-00000010" or checkpoints(run)[:2] == [".partial-step-00000020", "step-00000010"]
    runs.goes_on(run)


@pytest.mark.parametrize(("told", "number"), [(0, signal.SIGHUP), (1, signal.SIGUSR1)])
def test_a_save_told_to_any_rank_is_one_more_checkpoint(
    runs: Runs, tmp_path: Path, told: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    session = runs.server.train(runs.config, run, faults={told: fault("signal_at", step=13, number=number)})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert checkpoints(run) == [f"step-{step:08d}" for step in (10, 14, 20, 30, 40)]
    runs.ends_as_whole(run)


def test_no_room_on_one_rank_publishes_nothing_and_training_goes_on(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    soon = fault("retry_soon")
    refused = fault("no_room", from_step=18, to_step=25)
    session = runs.server.train(runs.config, run, faults={0: soon, 1: [soon, refused]})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert "no checkpoint at step 20 (" in session.said(0)
    assert "rank 1 of 2: File too large" in session.said(0)
    assert "step-00000020" not in checkpoints(run)
    assert checkpoints(run)[-2:] == ["step-00000030", "step-00000040"]
    runs.ends_as_whole(run)


def test_no_room_on_one_rank_for_the_last_save_ends_all_with_74(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused = fault("no_room", from_step=31)
    patience = ("--checkpoint.final-retry-seconds", "0.5")
    session = runs.server.train(runs.config, run, *patience, faults={1: refused})
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    assert "the last checkpoint, of step 40, could not be written (rank 1 of 2: File too large" in session.said(0)
    assert checkpoints(run) == ["step-00000010", "step-00000020", "step-00000030"]
    runs.goes_on(run)


def test_a_rank_that_is_late_changes_nothing(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    session = runs.server.start(runs.config, run, faults={1: fault("signal_at", step=22, number=signal.SIGSTOP)})
    session.wait_until(lambda: session.stopped(1))
    assert session.code(0) is None
    session.send(1, signal.SIGCONT)
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    runs.ends_as_whole(run)


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_too_late_ends_all_and_names_the_step(runs: Runs, tmp_path: Path, late: int) -> None:
    run = tmp_path / "run"
    stopped = fault("signal_at", step=22, number=signal.SIGSTOP)
    session = runs.server.start(runs.config, run, "--ranks.timeout-seconds", "3", faults={late: stopped})
    session.wait_until(lambda: session.code(1 - late) is not None)
    assert session.stopped(late)
    session.send(late, signal.SIGCONT)
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    last = session.said(1 - late).strip().splitlines()[-1]
    assert f"rank {1 - late} of 2 at step 22" in last
    assert "has not answered within 3 s" in last
    runs.goes_on(run)


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_too_late_in_a_save_holds_nobody_up(runs: Runs, tmp_path: Path, late: int) -> None:
    run = tmp_path / "run"
    stopped = fault("stop_in_save", save=2)
    session = runs.server.start(runs.config, run, "--ranks.timeout-seconds", "3", faults={late: stopped})
    session.wait_until(lambda: session.code(1 - late) is not None)
    assert session.stopped(late)
    session.send(late, signal.SIGCONT)
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    assert f"rank {1 - late} of 2 at step 2" in session.said(1 - late).strip().splitlines()[-1]
    assert [name for name in checkpoints(run) if name.startswith("step-")] == ["step-00000010"]
    runs.goes_on(run)
    assert [name for name in checkpoints(run) if not name.startswith("step-")] == []


@pytest.mark.parametrize("rate", [1000.0, 0.001])
def test_a_budget_in_seconds_is_by_the_clock_of_rank_0(runs: Runs, tmp_path: Path, rate: float) -> None:
    run = tmp_path / "run"
    other = fault("skewed_clock", rate=rate, offset=-1e6)
    budget = ("--budget.steps", "None", "--budget.seconds", "0.5", "--schedule.name", "constant")
    session = runs.server.train(runs.config, run, *budget, "--stepsize.policy", "observe", faults={1: other})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    steps = list(read_records(run / "steps.jsonl"))
    spent = sum(record["seconds"] for record in steps)
    assert spent - steps[-1]["seconds"] < 0.5 <= spent
    assert checkpoints(run)[-1] == f"step-{len(steps):08d}"
    assert all(health.damage is None for health in verify_checkpoints(run))


def test_damage_that_one_rank_sees_stops_all_with_its_name(runs: Runs, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "damaged"
    shutil.copytree(runs.data, copy)
    flip_in_row_group(copy / "train/part-00003.parquet", 1)
    session = runs.server.train(runs.config, run, only={1: ["--data.path", str(copy)]})
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    last = session.said(0).strip().splitlines()[-1]
    assert "rank 1 has stopped: " in last
    assert "part-00003.parquet" in last
    runs.goes_on(run)


def test_what_one_rank_is_given_wrongly_stops_all_with_2(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    session = runs.server.train(runs.config, run, only={1: ["--data.path", str(tmp_path / "nowhere")]})
    assert session.end() == [2, 2], (session.said(0), session.said(1))
    last = session.said(0).strip().splitlines()[-1]
    assert "rank 1 has stopped: " in last
    assert str(tmp_path / "nowhere") in last
    runs.goes_on(run)


def decisions(run: Path) -> dict[str, Any]:
    """What a run decided, and when."""
    keys = ("event", "step", "from", "to", "reason", "rate_factor", "rows_skipped", "cause", "epoch", "start", "rows")
    return {
        "events": [{key: event.get(key) for key in keys} for event in events(run, "withheld", "rollback", "stop")],
        "starts": [record["start"] for record in read_records(run / "steps.jsonl")],
        "withheld": [record["step"] for record in read_records(run / "steps.jsonl") if "withheld" in record],
    }


@pytest.mark.parametrize(
    ("bad", "code"), [([104], 0), ([104, 112, 120, 128, 136, 144], 0), (list(range(0, 240, 8)), 3)]
)
def test_what_is_not_finite_on_one_rank_is_decided_on_as_on_one(
    runs: Runs, tmp_path: Path, bad: list[int], code: int
) -> None:
    told = {}
    more = ("--stepsize.policy", "none", "--schedule.name", "constant", "--divergence.rollbacks", "1")
    for ranks in (1, 2):
        planted = fault("infinite_input", starts=bad)
        run = tmp_path / str(ranks)
        session = runs.server.train(runs.config, run, *more, ranks=ranks, faults={ranks - 1: planted})
        assert session.end() == [code] * ranks, session.said(0)
        told[ranks] = decisions(run)
    assert told[2] == told[1]
    assert told[2]["withheld"] or code == 3


def test_a_rate_that_is_far_too_high_ends_all_with_3(runs: Runs, tmp_path: Path) -> None:
    more = ("--stepsize.policy", "none", "--schedule.name", "constant", "--optimizer.lr", "1e30")
    session = runs.server.train(runs.config, tmp_path / "run", *more)
    assert session.end() == [3, 3], (session.said(0), session.said(1))
    assert [stop["reason"] for stop in events(tmp_path / "run", "stop")] == ["diverged"]


def test_a_target_ends_all_at_the_same_evaluation(runs: Runs, tmp_path: Path) -> None:
    session = runs.server.train(runs.config, tmp_path / "run", "--budget.target-loss", "9.0")
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert checkpoints(tmp_path / "run") == ["step-00000010", "step-00000016"]


LONG = ("--budget.steps", "300", "--eval.every-steps", "None", "--checkpoint.keep", "3")


@pytest.fixture
def launched(runs: Runs, tmp_path: Path) -> Iterator[Callable[..., LaunchedRanks]]:
    """`launched(launcher, *more)` starts the ranks of a longer run in real processes."""
    begun: list[LaunchedRanks] = []

    def begin(launcher: Sequence[str], *more: str) -> LaunchedRanks:
        begun.append(LaunchedRanks(launcher, runs.config, tmp_path / "run", *LONG, *more))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


@pytest.fixture(scope="module")
def long_whole(runs: Runs) -> Path:
    session = runs.server.train(runs.config, runs.folder / "long", *LONG)
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    return runs.folder / "long"


def test_the_launcher_starts_all_again_after_a_kill_and_stops_them_when_told(
    runs: Runs, launched: Any, long_whole: Path
) -> None:
    launch = launched(OWN, "--ranks", "2")
    before = launch.wait_until(launch.last_checkpoint)
    os.kill(launch.ranks()[1], signal.SIGKILL)
    said = "rank 1 was killed by SIGKILL; all 2 start again from the newest checkpoint (restart 1 of 3)"
    launch.wait_until(lambda: said in launch.said() and len(events(launch.run, "resume")) == 1)
    [resumed] = events(launch.run, "resume")
    assert resumed["step"] >= before
    launch.wait_until(lambda: launch.last_checkpoint() > resumed["step"])
    launch.send(signal.SIGTERM)
    assert launch.end() == 143, launch.said()
    [stop] = events(launch.run, "stop")
    assert (stop["step"], stop["reason"]) == (launch.last_checkpoint(), "interrupted")
    assert runs.server.train(runs.config, launch.run, *LONG).end() == [0, 0]
    same_end(launch.run, long_whole)


def test_torchrun_told_to_stop_saves_once_and_gives_its_own_code(runs: Runs, launched: Any, long_whole: Path) -> None:
    launch = launched(TORCHRUN)
    launch.wait_until(launch.last_checkpoint)
    launch.send(signal.SIGTERM)
    assert launch.end() == 1, launch.said()
    [stop] = events(launch.run, "stop")
    assert (stop["step"], stop["reason"]) == (launch.last_checkpoint(), "interrupted")
    assert runs.server.train(runs.config, launch.run, *LONG).end() == [0, 0]
    same_end(launch.run, long_whole)
