"""A rank of two that is killed, is late, or finds something wrong: the other one ends too, and says why.

The undisturbed run of two ranks is what each ends as, to the last bit, once the same command continues it.
`python -m tests.faults.ranks` does the same at many random moments.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.fork_server import Fault, fault
from tests.faults.forked_ranks import Session
from tests.faults.rank_runs import RankRuns, checkpoints
from tests.tiny_data import flip_in_row_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is stopped")

IMPATIENT = fault("impatient")
"""For ranks whose other one is killed or stopped, and leaves no word that could be waited for."""


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_killed_in_a_step_ends_the_other_and_the_same_command_continues(
    rank_runs: RankRuns, tmp_path: Path, dying: int
) -> None:
    run = tmp_path / "run"
    killed = fault("signal_at", step=13 + dying, number=signal.SIGKILL)
    session = rank_runs.ranks.train(rank_runs.config, run, faults={dying: killed, 1 - dying: IMPATIENT})
    codes = session.end()
    assert (codes[dying], codes[1 - dying]) == (-9, 74), session.said(1 - dying)
    last = session.said(1 - dying).strip().splitlines()[-1]
    assert f"rank {1 - dying} of 2 at step {13 + dying}" in last
    rank_runs.goes_on(run)


@pytest.mark.parametrize(("dying", "part", "after"), [(0, 3, True), (1, 2, False)])
def test_a_rank_killed_in_a_save_leaves_the_old_or_the_new_checkpoint(
    rank_runs: RankRuns, tmp_path: Path, dying: int, part: int, after: bool
) -> None:
    run = tmp_path / "run"
    died = fault("die_in_save", save=2, part=part, after=after)
    session = rank_runs.ranks.train(rank_runs.config, run, faults={dying: died, 1 - dying: IMPATIENT})
    codes = session.end()
    assert (codes[dying], codes[1 - dying]) == (-9, 74), session.said(1 - dying)
    named = [name for name in checkpoints(run) if not name.startswith(".") and name.startswith("step-")]
    assert named in (["step-00000010"], ["step-00000010", "step-00000020"]), checkpoints(run)
    rank_runs.goes_on(run)
    assert [name for name in checkpoints(run) if not name.startswith("step-")] == []


def test_a_rank_that_is_late_changes_nothing(rank_runs: RankRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    session = rank_runs.ranks.start(
        rank_runs.config, run, faults={1: fault("signal_at", step=12, number=signal.SIGSTOP)}
    )
    session.wait_until(lambda: session.stopped(1))
    assert session.code(0) is None
    session.send(1, signal.SIGCONT)
    assert session.end() == [0, 0], (session.said(0), session.said(1))
    rank_runs.ends_as_whole(run)


def each_late(rank_runs: RankRuns, folder: Path, stopped: Fault) -> list[tuple[int, Session]]:
    """Two runs at once, in folders 0 and 1, of which that rank is `stopped`, and continued once the other has ended."""
    sessions = []
    for late in (0, 1):
        more = ("--ranks.timeout-seconds", "3")
        faults = {late: [IMPATIENT, stopped], 1 - late: IMPATIENT}
        sessions.append(rank_runs.ranks.start(rank_runs.config, folder / str(late), *more, faults=faults))
    for late, session in enumerate(sessions):
        session.wait_until(lambda late=late, session=session: session.code(1 - late) is not None)
        assert session.stopped(late), session.said(late)
        session.send(late, signal.SIGCONT)
        assert session.end() == [74, 74], (session.said(0), session.said(1))
    return list(enumerate(sessions))


def test_a_rank_that_is_too_late_ends_all_and_names_the_step(rank_runs: RankRuns, tmp_path: Path) -> None:
    stopped = fault("signal_at", step=12, number=signal.SIGSTOP)
    for late, session in each_late(rank_runs, tmp_path, stopped):
        last = session.said(1 - late).strip().splitlines()[-1]
        assert f"rank {1 - late} of 2 at step 12" in last
        assert "has not answered within 3 s" in last
        rank_runs.goes_on(tmp_path / str(late))


def test_a_rank_that_is_too_late_in_a_save_holds_nobody_up(rank_runs: RankRuns, tmp_path: Path) -> None:
    for late, session in each_late(rank_runs, tmp_path, fault("stop_in_save", save=2)):
        run = tmp_path / str(late)
        last = session.said(1 - late).strip().splitlines()[-1]
        assert re.search(rf"rank {1 - late} of 2 at step (19|2\d)\b", last), last  # the save is after step 19
        assert [name for name in checkpoints(run) if name.startswith("step-")] == ["step-00000010"]
        rank_runs.goes_on(run)
        assert [name for name in checkpoints(run) if not name.startswith("step-")] == []


def test_damage_that_one_rank_sees_stops_all_with_its_name(rank_runs: RankRuns, tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "damaged"
    shutil.copytree(rank_runs.data, copy)
    flip_in_row_group(copy / "train/part-00003.parquet", 1)
    session = rank_runs.ranks.train(rank_runs.config, run, only={1: ["--data.path", str(copy)]})
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    last = session.said(0).strip().splitlines()[-1]
    assert "rank 1 has stopped: " in last
    assert "part-00003.parquet" in last
    rank_runs.goes_on(run)


def test_what_one_rank_is_given_wrongly_stops_all_with_2(rank_runs: RankRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    session = rank_runs.ranks.train(rank_runs.config, run, only={1: ["--data.path", str(tmp_path / "nowhere")]})
    assert session.end() == [2, 2], (session.said(0), session.said(1))
    last = session.said(0).strip().splitlines()[-1]
    assert "rank 1 has stopped: " in last
    assert str(tmp_path / "nowhere") in last
    rank_runs.goes_on(run)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_validation_batch_that_is_damaged_on_one_machine_alone_stops_all_with_what_it_is(
    rank_runs: RankRuns, tmp_path: Path, damaged: int
) -> None:
    """All of the only one there is, where damage is to be skipped."""
    run, copy = tmp_path / "run", tmp_path / "damaged"
    shutil.copytree(rank_runs.data, copy)
    flip_in_row_group(copy / "validation/part-00000.parquet", 0)
    skipping = ("--data.damaged", "skip", "--eval.splits", "validation")
    session = rank_runs.ranks.train(rank_runs.config, run, *skipping, only={damaged: ["--data.path", str(copy)]})
    assert session.end() == [74, 74], (session.said(0), session.said(1))
    shares = ("[0, 9] rows, not [4, 5]", "[8, 0] rows, not [4, 4]")[damaged]
    for rank in (0, 1):
        last = session.said(rank).strip().splitlines()[-1]
        assert f"ranks have read other rows than one another (shares of {shares})" in last
        assert "run `alphastream verify`" in last
