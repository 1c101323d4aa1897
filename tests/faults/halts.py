"""Two ranks under the launcher, as real processes: `python -m tests.faults.halts`.

One is halted (SIGSTOP) for longer than the others wait, one is halted and the launcher told to stop, and the launcher
is told to stop twice at once. Each time the launch ends as README says, and the same command ends the run as one that
nothing disturbed, bit for bit. Prints a line for each.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.fork_server import ForkServer
from tests.faults.launched_ranks import OWN, LaunchedRanks
from tests.faults.rank_runs import LONG, RankRuns, events, same_end

PATIENCE = ("--ranks.timeout_seconds", "5")


def halted(launch: LaunchedRanks, rank: int) -> str:
    """All start again once the others have given it up, and the run comes to its end."""
    launch.wait_until(launch.last_checkpoint)
    os.kill(launch.ranks()[rank], signal.SIGSTOP)
    code = launch.end()
    assert code == 0, launch.said()
    resumed = [event["step"] for event in events(launch.run, "resume")]
    assert len(resumed) == 1, launch.said()
    assert "restart 1 of 3" in launch.said(), launch.said()
    return f"started again from step {resumed[0]}, code {code}"


def halted_and_stopped(launch: LaunchedRanks, rank: int) -> str:
    """Nothing can be saved at a step that one rank does not make; the launch ends all the same."""
    launch.wait_until(launch.last_checkpoint)
    os.kill(launch.ranks()[rank], signal.SIGSTOP)
    launch.send(signal.SIGTERM)
    code = launch.end()
    assert code in (74, 143), launch.said()
    return f"ended, code {code}"


def stopped_twice(launch: LaunchedRanks, rank: int) -> str:
    """The second signal leaves at once, with what was saved before."""
    launch.wait_until(launch.last_checkpoint)
    launch.send(signal.SIGTERM)
    launch.send(signal.SIGTERM)
    began = time.monotonic()
    code = launch.end()
    assert code == 143, launch.said()
    return f"ended within {time.monotonic() - began:.0f} s, code {code}"


def main() -> int:
    """Prints a line for each; what goes wrong is raised."""
    ways: tuple[tuple[str, Callable[[LaunchedRanks, int], str], int, tuple[str, ...]], ...] = (
        ("rank 1 halted", halted, 1, PATIENCE),
        ("rank 0 halted", halted, 0, PATIENCE),
        ("rank 1 halted, then TERM", halted_and_stopped, 1, (*PATIENCE, "--grace-seconds", "10")),
        ("TERM twice", stopped_twice, 0, ()),
    )
    with tempfile.TemporaryDirectory(prefix="halts-") as name, ForkServer() as server:
        runs = RankRuns(server, Path(name))
        whole = runs.ended(Path(name) / "whole-long", *LONG)
        for number, (what, disturb, rank, more) in enumerate(ways):
            run = Path(name) / f"run-{number}"
            launch = LaunchedRanks(OWN, runs.config, run, "--ranks", "2", *LONG, *more)
            try:
                told = disturb(launch, rank)
            finally:
                launch.close()
            same_end(runs.ended(run, *LONG), whole)
            print(f"{what}: {told}; in the end as two ranks that nothing disturbed, bit for bit", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
