"""`kill -9` at random moments of a run that evaluates and saves often: `python -m tests.faults.kills --kills 100`.

A run is killed and started again until it ends by itself; if that is too soon, another one follows. Each must end like
one that was never disturbed, bit for bit, and be whole for `alphastream verify` after every kill.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.fork_server import ForkServer
from tests.faults.forked_runs import ForkedRuns
from tests.faults.small_run import same_end, small_run

SETTINGS = ("--eval.every-steps", "25", "--checkpoint.every-steps", "10", "--checkpoint.keep", "2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ForkServer() as server:
        runs = ForkedRuns(server, Path(name))
        problem, counts = kill_and_continue(
            runs, Path(name), kills=asked.kills, steps=asked.steps, chance=random.Random(asked.seed)
        )
    print(", ".join(f"{number:,} {what}" for what, number in counts.items()))
    print(problem or "all ended like an undisturbed run, bit for bit")
    return 1 if problem else 0


def kill_and_continue(
    runs: ForkedRuns, folder: Path, *, kills: int, steps: int, chance: random.Random
) -> tuple[str | None, Counter[str]]:
    """What went wrong, if anything did, and what was seen of `kills` kills of runs of `steps` steps."""
    config, whole = small_run(folder), folder / "whole"
    settings = ("--budget.steps", str(steps), *SETTINGS)
    began = time.monotonic()
    assert runs.train(config, whole, *settings) == 0, runs.log.read_text()
    # so that a run of 900 steps is killed some ten times: often at its start, seldom after much of it
    most_seconds = (time.monotonic() - began) * max(90 / steps, 0.2)
    counts = Counter[str]({"kills": 0, "runs": 0})
    while counts["kills"] < kills:
        counts["runs"] += 1
        run, before = folder / f"run-{counts['runs']}", 0
        while True:
            seconds = chance.uniform(0, most_seconds) if counts["kills"] < kills else None
            code = runs.train(config, run, *settings, kill_seconds=seconds)
            if code not in (0, -9):
                return f"exit code {code}: {runs.log.read_text()[-500:]}", counts
            if run.exists() and runs.call("verify", str(run)) != 0:
                return f"not whole after {counts['kills']} kills: {runs.log.read_text()}", counts
            if code == 0:
                break
            counts["kills"] += 1
            names = [path.name for path in (run / "checkpoints").glob("*")]
            newest = max((int(name[5:13]) for name in names if name.startswith("step-")), default=0)
            counts["while a checkpoint was written or deleted"] += any(name.startswith(".") for name in names)
            counts["that came before the next checkpoint"] += newest == before
            before = newest
        if not same_end(run, whole):
            return f"run {counts['runs']} ended differently", counts
    return None, counts


if __name__ == "__main__":
    sys.exit(main())
