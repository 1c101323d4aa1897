"""Two ranks of one run that are told to stop or to save, run out of room, or diverge: they decide as one.

The undisturbed run of two ranks is what each ends as, to the last bit. `python -m tests.faults.ranks --stops` tells
ranks to stop at many random moments.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import fault
from tests.faults.rank_runs import RankRuns, checkpoints, events
from trainer.records import read_records, verify_checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, and limits of the system")


@pytest.mark.parametrize(
    ("told", "number"),
    [((0,), signal.SIGTERM), ((1,), signal.SIGTERM), ((1, 0), signal.SIGINT)],
)
def test_a_stop_told_to_any_rank_is_one_checkpoint_at_one_step(
    rank_runs: RankRuns, tmp_path: Path, told: tuple[int, ...], number: signal.Signals
) -> None:
    run, step = tmp_path / "run", 17
    # at different steps where several are told, as by a scheduler that goes from one to the next
    faults = {rank: fault("signal_at", step=step + place, number=number) for place, rank in enumerate(told)}
    session = rank_runs.ranks.train(rank_runs.config, run, faults=faults)
    assert session.end() == [143, 143], (session.said(0), session.said(1))
    assert checkpoints(run) == ["step-00000010", "step-00000018"]
    assert [(stop["step"], stop["reason"]) for stop in events(run, "stop")] == [(18, "interrupted")]
    rank_runs.goes_on(run)


@pytest.mark.parametrize("told", [0, 1])
def test_a_rank_told_to_stop_twice_leaves_at_once(rank_runs: RankRuns, tmp_path: Path, told: int) -> None:
    run = tmp_path / "run"
    session = rank_runs.ranks.train(rank_runs.config, run, faults={told: fault("interrupted_at", step=20)})
    codes = session.end()
    assert (codes[told], codes[1 - told]) == (143, 74), (session.said(0), session.said(1))
    last = session.said(1 - told).strip().splitlines()[-1]
    assert last == f"alphastream: rank {told} has stopped: a signal ended it at once"
    # that of step 20 may have been under way
    assert checkpoints(run)[0] == "step-00000010" or checkpoints(run)[:2] == [".partial-step-00000020", "step-00000010"]
    rank_runs.goes_on(run)


@pytest.mark.parametrize(("told", "number"), [(0, signal.SIGHUP), (1, signal.SIGUSR1)])
def test_a_save_told_to_any_rank_is_one_more_checkpoint(
    rank_runs: RankRuns, tmp_path: Path, told: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    session = rank_runs.ranks.train(rank_runs.config, run, faults={told: fault("signal_at", step=13, number=number)})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert checkpoints(run) == [f"step-{step:08d}" for step in (10, 14, 20, 30)]
    rank_runs.ends_as_whole(run)


def test_no_room_on_one_rank_publishes_nothing_and_training_goes_on(rank_runs: RankRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    soon = fault("retry_soon")
    refused = fault("no_room", from_step=8, to_step=13)
    session = rank_runs.ranks.train(rank_runs.config, run, faults={0: soon, 1: [soon, refused]})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert "no checkpoint at step 10 (" in session.said(0)
    assert "rank 1 of 2: File too large" in session.said(0)
    assert "step-00000010" not in checkpoints(run)
    assert checkpoints(run)[-2:] == ["step-00000020", "step-00000030"]
    rank_runs.ends_as_whole(run)


def test_no_room_on_one_rank_for_the_last_save_ends_all_with_74(rank_runs: RankRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused = fault("no_room", from_step=21)
    patience = ("--checkpoint.final-retry-seconds", "0.5")
    session = rank_runs.ranks.train(rank_runs.config, run, *patience, faults={1: refused})
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    assert "the last checkpoint, of step 30, could not be written (rank 1 of 2: File too large" in session.said(0)
    assert checkpoints(run) == ["step-00000010", "step-00000020"]
    rank_runs.goes_on(run)


@pytest.mark.parametrize("rate", [1000.0, 0.001])
def test_a_budget_in_seconds_is_by_the_clock_of_rank_0(rank_runs: RankRuns, tmp_path: Path, rate: float) -> None:
    run = tmp_path / "run"
    other = fault("skewed_clock", rate=rate, offset=-1e6)
    budget = ("--budget.steps", "None", "--budget.seconds", "0.5", "--schedule.name", "constant")
    session = rank_runs.ranks.train(rank_runs.config, run, *budget, "--stepsize.policy", "observe", faults={1: other})
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    steps = list(read_records(run / "steps.jsonl"))
    spent = sum(record["seconds"] for record in steps)
    assert spent - steps[-1]["seconds"] < 0.5 <= spent
    assert checkpoints(run)[-1] == f"step-{len(steps):08d}"
    assert all(health.damage is None for health in verify_checkpoints(run))


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
    rank_runs: RankRuns, tmp_path: Path, bad: list[int], code: int
) -> None:
    told = {}
    more = ("--stepsize.policy", "none", "--schedule.name", "constant", "--divergence.rollbacks", "1")
    for ranks in (1, 2):
        planted = fault("infinite_input", starts=bad)
        run = tmp_path / str(ranks)
        session = rank_runs.ranks.train(rank_runs.config, run, *more, ranks=ranks, faults={ranks - 1: planted})
        assert session.end() == [code] * ranks, session.said(0)
        told[ranks] = decisions(run)
    assert told[2] == told[1]
    assert told[2]["withheld"] or code == 3


def test_a_rate_that_is_far_too_high_ends_all_with_3(rank_runs: RankRuns, tmp_path: Path) -> None:
    more = ("--stepsize.policy", "none", "--schedule.name", "constant", "--optimizer.lr", "1e30")
    session = rank_runs.ranks.train(rank_runs.config, tmp_path / "run", *more)
    assert session.end() == [3, 3], (session.said(0), session.said(1))
    assert [stop["reason"] for stop in events(tmp_path / "run", "stop")] == ["diverged"]


def test_a_target_ends_all_at_the_same_evaluation(rank_runs: RankRuns, tmp_path: Path) -> None:
    session = rank_runs.ranks.train(rank_runs.config, tmp_path / "run", "--budget.target-loss", "9.0")
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    assert checkpoints(tmp_path / "run") == ["step-00000010", "step-00000016"]
