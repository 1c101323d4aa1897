"""Ranks on one machine: killed, stopped, hung, wrong; and the launcher itself killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.launches import MEETS, NOBODY, RANK, TRAINS, Launch, lives
from trainer.launch import LaunchConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what lives, and the kernel's tether")

Begin = Callable[..., Launch]
SAVES_AND_ENDS = TRAINS + "note('saved')\nsys.exit(143)\n"


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """`begin(program, ranks=2, ...)` launches; what still lives at the end is killed."""
    launches: list[Launch] = []

    def launch(
        program: str,
        *,
        ranks: int = 2,
        retry_seconds: float = 0.0,
        meet: str = NOBODY,
        leave_seconds: float = 5.0,
        **config: float,
    ) -> Launch:
        settings = LaunchConfig(ranks=ranks, retry_seconds=retry_seconds, **config)  # pyright: ignore[reportArgumentType]
        folder = tmp_path / str(len(launches))
        launches.append(Launch(folder, program, settings, meet=meet, leave_seconds=leave_seconds))
        return launches[-1]

    yield launch
    for each in launches:
        each.process.kill()
        each.process.wait()


def test_ranks_of_gloo_find_one_another_and_are_done(begin: Begin) -> None:
    """By the environment alone, as under torchrun; also after a restart, and not those that were there before."""
    launch = begin(
        RANK
        + """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([10.0 ** rank])
dist.all_reduce(total)
note(f"{total.item():.0f} of {dist.get_world_size()}, {os.environ['LOCAL_RANK']}, {torch.get_num_threads()}")
dist.barrier()
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    dist.barrier()
except RuntimeError:
    sys.exit(74)
dist.destroy_process_group()
""",
        meet=MEETS,
    )
    assert launch.end() == 0, launch.said()
    assert [launch.texts(rank) for rank in range(2)] == [[f"11 of 2, {rank}, 1"] * 2 for rank in range(2)]
    assert (
        "rank 1 was killed by SIGKILL; all 2 start again from the newest checkpoint (restart 1 of 3)" in launch.said()
    )


def test_a_killed_rank_restarts_all_as_often_as_it_may(begin: Begin) -> None:
    launch = begin(TRAINS, ranks=3, max_restarts=1, peer_seconds=0.1)
    for attempt, rank in enumerate((1, 0)):
        os.kill(launch.pids(attempt=attempt)[rank], signal.SIGKILL)
    assert launch.end() == 128 + signal.SIGKILL
    assert "rank 0 was killed by SIGKILL; no restart is left of 1" in launch.said()
    assert len(launch.notes(2)) == 2
    assert not any(lives(pid) for rank in range(3) for _, pid, _ in launch.notes(rank))


@pytest.mark.parametrize("code", [2, 3])
def test_what_does_not_mend_itself_is_not_started_again(begin: Begin, code: int) -> None:
    launch = begin(RANK + f"note('begins'); print('what is wrong, by rank', rank); sys.exit({code})\n")
    assert launch.end() == code
    assert [len(launch.notes(rank)) for rank in range(2)] == [1, 1]
    assert launch.said().count("what is wrong") == 1
    assert "by rank 0" in launch.said()
    assert (launch.run / "ranks/rank-1.log").read_text() == "what is wrong, by rank 1\n"


def test_an_io_failure_is_tried_again_and_the_last_lines_of_who_failed_are_shown(begin: Begin) -> None:
    launch = begin(
        RANK + "print('no space left', rank)\nif rank == 1: sys.exit(74)\ntime.sleep(100)\n",
        max_restarts=2,
        peer_seconds=0.1,
    )
    assert launch.end() == 74
    assert launch.said().count("rank 1: no space left 1") == 3
    assert "rank 1 ended with code 74; no restart is left of 2" in launch.said()


def test_the_lines_of_a_rank_are_nobodys_before_there_is_a_run(begin: Begin) -> None:
    program = "import pathlib, sys\n[file.unlink() for file in pathlib.Path(sys.argv[1]).iterdir()]\n"
    launch = begin(program.replace("file.unlink()", "file.unlink(missing_ok=True)") + "print('wrong'); sys.exit(2)\n")
    assert launch.end() == 2
    assert list(launch.run.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_the_launcher_reaches_every_rank_once(begin: Begin, number: signal.Signals) -> None:
    launch = begin(SAVES_AND_ENDS, ranks=3)
    launch.pids()
    launch.send(number)
    assert launch.end() == 143
    assert [launch.texts(rank) for rank in range(3)] == [["training", number.name, "saved"]] * 3


def test_a_signal_to_the_launchers_process_group_reaches_every_rank_once(begin: Begin) -> None:
    """As a terminal's Ctrl-C does; ranks have groups of their own."""
    launch = begin(SAVES_AND_ENDS)
    launch.pids()
    os.killpg(launch.process.pid, signal.SIGINT)
    assert launch.end() == 143
    assert [launch.texts(rank) for rank in range(2)] == [["training", "SIGINT", "saved"]] * 2


def test_a_signal_to_one_rank_stops_the_others(begin: Begin) -> None:
    launch = begin(SAVES_AND_ENDS, ranks=3)
    os.kill(launch.pids()[2], signal.SIGTERM)
    assert launch.end() == 143
    assert [launch.texts(rank) for rank in range(3)] == [["training", "SIGTERM", "saved"]] * 3


def test_a_rank_that_does_not_hear_yet_counts_as_stopped(begin: Begin) -> None:
    launch = begin(RANK + "note('imports'); time.sleep(100)\n")
    launch.pids()
    launch.send(signal.SIGUSR1)  # there is nothing to save yet; by default, Linux would kill
    launch.send(signal.SIGHUP)
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    assert "restart" not in launch.said()


def test_a_stop_that_shows_stacks_counts_as_one_too_where_nobody_hears_yet(begin: Begin) -> None:
    launch = begin(RANK + "note('imports'); os.kill(os.getpid(), signal.SIGQUIT); time.sleep(100)\n")
    assert launch.end() == 143
    assert "restart" not in launch.said()


def test_a_rank_that_never_ends_behind_one_that_is_done_is_killed(begin: Begin) -> None:
    launch = begin(
        RANK + "note('trains'); time.sleep(1000 * rank)\n", ending_seconds=0.5, grace_seconds=0, max_restarts=0
    )
    assert launch.end() == 137
    assert "rank 1: killed, as it had not ended in time" in launch.said()


def test_what_asks_for_a_save_or_for_stacks_is_passed_on_and_nothing_ends(begin: Begin) -> None:
    launch = begin(SAVES_AND_ENDS)
    launch.pids()
    asked = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in asked:
        launch.send(number)
        launch.wait_until(lambda number=number: all(number.name in launch.texts(rank) for rank in range(2)))
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    expected = ["training", *(number.name for number in asked), "SIGTERM", "saved"]
    assert [launch.texts(rank) for rank in range(2)] == [expected] * 2


def test_who_is_done_when_it_is_told_to_stop_is_done(begin: Begin) -> None:
    launch = begin(TRAINS)
    launch.pids()
    launch.send(signal.SIGTERM)
    assert launch.end() == 0


def test_a_save_that_fails_at_the_end_is_not_tried_again(begin: Begin) -> None:
    launch = begin(TRAINS + "sys.exit(74)\n")
    launch.pids()
    launch.send(signal.SIGTERM)
    assert launch.end() == 74
    assert len(launch.texts(0)) == 2


def test_the_second_signal_leaves_at_once(begin: Begin) -> None:
    launch = begin(TRAINS + "time.sleep(1000)\n", leave_seconds=0.5)
    pids = launch.pids()
    launch.send(signal.SIGTERM)
    launch.wait_until(lambda: "SIGTERM" in launch.texts(1))
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    assert "SIGTERM: leaving within" in launch.said()
    assert not any(map(lives, pids))


def test_who_has_not_saved_when_its_time_is_up_is_killed(begin: Begin) -> None:
    launch = begin(TRAINS + "time.sleep(1000 * rank)\n", grace_seconds=0.5)
    pids = launch.pids()
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    assert "rank 1: killed, as it had not ended in time" in launch.said()
    assert not any(map(lives, pids))


def test_a_stop_between_two_starts_is_one(begin: Begin) -> None:
    launch = begin(RANK + "note('begins'); sys.exit(74)\n", retry_seconds=1000)
    launch.wait_until(lambda: "start again in 1000 s" in launch.said())
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    assert "run the same command again to continue" in launch.said()
    assert len(launch.notes(0)) == 1


def test_ranks_end_with_a_launcher_that_is_killed(begin: Begin) -> None:
    """Also those that hear TERM and are stuck."""
    launch = begin(TRAINS + "time.sleep(1000)\n", ranks=3)
    pids = launch.pids()
    launch.process.kill()
    launch.process.wait()
    while any(map(lives, pids)):
        time.sleep(0.02)
