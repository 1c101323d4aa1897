"""A save that is killed or refused at a call of the system; `python -m tests.faults.save_calls` tries every one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.forked_runs import ForkedRuns, TracedSave, why_untraced
from tests.faults.kills import kill_and_continue
from tests.faults.save_calls import FINAL, Point, Trials

MIDDLE = TracedSave(step=4, options=())
KILLED = [
    Point(MIDDLE, "write", 3),
    Point(MIDDLE, "fsync", 9),
    Point(MIDDLE, "rename", 1),
    Point(MIDDLE, "unlinkat", 2),
]
REFUSED = [Point(MIDDLE, "mkdir", 2), Point(MIDDLE, "write", 2), Point(MIDDLE, "rename", 2), Point(MIDDLE, "rmdir", 1)]


@pytest.fixture(scope="module")
def runs(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> ForkedRuns:
    return ForkedRuns(server, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def trials(runs: ForkedRuns, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    if reason := why_untraced():
        pytest.skip(reason)
    return Trials(runs, tmp_path_factory.mktemp("trials"))


@pytest.mark.parametrize("point", KILLED, ids=str)
def test_a_save_that_is_killed_costs_steps_and_nothing_else(trials: Trials, point: Point) -> None:
    assert trials.kill(point) is None


@pytest.mark.parametrize("point", REFUSED, ids=str)
def test_a_save_that_finds_no_space_costs_nothing_but_itself(trials: Trials, point: Point) -> None:
    assert trials.refuse(point) is None


def test_the_last_save_is_made_again_at_once_or_by_the_next_command(trials: Trials) -> None:
    assert trials.refuse(Point(FINAL, "fsync", 6)) is None
    assert trials.refuse_for_good(Point(FINAL, "fsync", 6)) is None


def test_kill_9_at_random_moments_costs_steps_and_nothing_else(runs: ForkedRuns, tmp_path: Path) -> None:
    problem, counts = kill_and_continue(runs, tmp_path, kills=4, steps=120, chance=random.Random(1))
    assert problem is None
    assert counts["kills"] == 4
