"""Two ranks of a run, killed at random steps and inside saves: `python -m tests.faults.ranks --kills 20`.

A run is started again after each kill until it ends; its end is that of one that nothing disturbed, bit for bit. Also
TERM to either rank at random steps (`--stops`). Prints how many of each there were, and what went wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.fork_server import Fault, ForkServer, fault
from tests.faults.rank_runs import STEPS, RankRuns

Draw = Callable[[random.Random, int], tuple[str, Fault, int]]


def kill(chance: random.Random, begun: int) -> tuple[str, Fault, int]:
    """Where a rank is killed in a session that begins at this step, how, and with which code it ends."""
    if chance.random() < 0.5:
        step = chance.randrange(begun, STEPS)
        return f"at step {step}", fault("signal_at", step=step, number=signal.SIGKILL), -signal.SIGKILL
    part, after = chance.randint(1, 3), chance.random() < 0.5
    where = f"{'after' if after else 'before'} part {part} of the next save"
    return where, fault("die_in_save", save=1, part=part, after=after), -signal.SIGKILL


def stop(chance: random.Random, begun: int) -> tuple[str, Fault, int]:
    """The same of TERM."""
    step = chance.randrange(begun, STEPS)
    return f"at step {step}", fault("signal_at", step=step, number=signal.SIGTERM), 143


def disturbed(runs: RankRuns, folder: Path, draw: Draw, count: int, chance: random.Random) -> tuple[Counter[str], int]:
    """So many disturbances of one run after another; exit codes of both ranks, counted, and how many runs they were."""
    seen: Counter[str] = Counter()
    number = 0
    for _ in range(count):
        run = folder / f"run-{number}"
        names = [path.name for path in (run / "checkpoints").glob("step-*")] if run.exists() else []
        begun = max((int(name.removeprefix("step-")) for name in names), default=0)
        if begun < STEPS:
            rank = chance.randrange(2)
            where, planned, expected = draw(chance, begun)
            session = runs.ranks.train(runs.config, run, faults={rank: planned})
            codes = session.end()
            told = f"rank {rank} {where}, from step {begun}: {codes}"
            other = 143 if expected == 143 else 74
            assert codes[rank] == expected, (told, session.said(0), session.said(1))
            assert codes[1 - rank] in (other, 0), (told, session.said(0), session.said(1))
            seen[str(sorted(codes))] += 1
        if begun >= STEPS or chance.random() < 0.2:
            runs.goes_on(run)
            number += 1
    if (folder / f"run-{number}").exists():
        runs.goes_on(folder / f"run-{number}")
        number += 1
    return seen, number


def main() -> int:
    """Prints a line for kills and one for stops; what goes wrong is raised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ranks", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, ForkServer() as server:
        runs = RankRuns(server, Path(name))
        for what, draw, count in (("kills", kill, given.kills), ("stops", stop, given.stops)):
            seen, ended = disturbed(runs, Path(name) / what, draw, count, chance)
            print(f"{what}: {sum(seen.values())}, codes {dict(seen)}; {ended} runs ended the same", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
