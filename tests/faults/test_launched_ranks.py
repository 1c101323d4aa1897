"""Two ranks in real processes, under the project's launcher and under torchrun, disturbed from outside."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.launched_ranks import OWN, TORCHRUN, LaunchedRanks
from tests.faults.rank_runs import RankRuns, events, same_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which the ranks are")

Begin = Callable[..., LaunchedRanks]
EVER = ("--schedule.name", "constant", "--stepsize.cooldown", "0", "--eval.every-steps", "None", "--budget.steps")
"""And how many steps; the rate does not depend on how many they are."""


@pytest.fixture
def launched(rank_runs: RankRuns, tmp_path: Path) -> Iterator[Begin]:
    """`launched(launcher, *more)` starts the ranks of a run that never ends in real processes."""
    begun: list[LaunchedRanks] = []

    def begin(launcher: Sequence[str], *more: str) -> LaunchedRanks:
        begun.append(LaunchedRanks(launcher, rank_runs.config, tmp_path / "run", *EVER, "1_000_000", *more))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def goes_on_as_undisturbed(rank_runs: RankRuns, launch: LaunchedRanks) -> None:
    """Asserts that a run that was told to stop saved there, and ends some steps later as one that nothing disturbed."""
    [stop] = events(launch.run, "stop")
    assert (stop["step"], stop["reason"]) == (launch.last_checkpoint(), "interrupted")
    more = (*EVER, str(stop["step"] + 7))
    whole = rank_runs.ended(launch.run.with_name("whole"), *more)
    same_end(rank_runs.ended(launch.run, *more), whole)


def test_the_launcher_starts_all_again_after_a_kill_and_stops_them_when_told(
    rank_runs: RankRuns, launched: Begin
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
    goes_on_as_undisturbed(rank_runs, launch)


def test_torchrun_told_to_stop_saves_once_and_gives_its_own_code(rank_runs: RankRuns, launched: Begin) -> None:
    launch = launched(TORCHRUN)
    launch.wait_until(launch.last_checkpoint)
    launch.send(signal.SIGTERM)
    assert launch.end() == 1, launch.said()
    goes_on_as_undisturbed(rank_runs, launch)
