"""Generations that come at random moments of a run that is killed again and again: `python -m tests.faults.arrivals`.

Each is appended while the run trains, while it waits, while it is dead, or while it is being killed. What it ends with
must be that of one run over the same generations present from the start, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults.fork_server import ForkServer
from tests.faults.runs import Run
from tests.resume import lasting, same_bits
from trainer.cli import main as alphastream
from trainer.records import read_records

SETTINGS = """
[data]
path = "{data}"
batch_rows = 16
follow = true
follow_poll_seconds = 0.05
{idle}
[model]
table_rows = 2048
embedding_dim = 4
bottom = [4]
top = [4, 1]
[schedule]
name = "constant"
[stepsize]
policy = "auto"
interval = 10
count = 4
[eval]
every_steps = 40
rows = 100
progressive_rows = 300
[checkpoint]
every_steps = 17
[metrics]
port = -1
"""
MOST_ROWS = 800
"""Of a generation; the fewest are less than a pair of batches."""
MOST_SECONDS = 3600
"""A run over all generations takes less."""
TRAINS_SECONDS, DIES_SECONDS = 1.0, 3.0
"""An append or a kill comes so late after the start of a process, at most: most often it trains then."""
MOMENTS = ("trains", "waits")
FATAL = ("is dead", "dies")


@dataclass(kw_only=True)
class Growth:
    """A folder that grows, and the run that follows it."""

    server: ForkServer
    config: Path
    data: Path
    run: Path
    chance: random.Random
    kills: int = 0
    process: Run | None = field(default=None, init=False)

    def append(self, day: Path) -> None:
        append(day, self.data)

    def running(self) -> Run:
        """The process, started if there is none."""
        if self.process is None:
            self.process = Run(self.config, self.run, server=self.server)
        return self.process

    def kill(self) -> None:
        """Ends the process, if there is one, by SIGKILL; what it left must be whole."""
        if self.process is None:
            return
        self.process.process.kill()
        assert self.process.process.wait() == -9, self.process.said()
        self.process, self.kills = None, self.kills + 1
        if any((self.run / "checkpoints").glob("step-*")):
            call("verify", str(self.run))

    def moment(self, seconds: float) -> None:
        """A random one within so many seconds; nothing waits on it."""
        time.sleep(self.chance.uniform(0, seconds))

    def arrive(self, day: Path, when: str, *, generations: int) -> None:
        """Appends `day`, to so many `generations`, at a random moment of those that `when` names."""
        match when:
            case "trains":
                self.running()
                self.moment(TRAINS_SECONDS)
                self.append(day)
            case "waits":
                self.running().wait_until(lambda: waits_after(self.run) == generations)
                self.moment(0.3)
                self.append(day)
            case "is dead":
                self.running()
                self.moment(DIES_SECONDS)
                self.kill()
                self.append(day)
            case _:
                self.running()
                self.moment(DIES_SECONDS)
                thread = threading.Thread(target=self.append, args=(day,))
                thread.start()
                self.moment(0.5)
                self.kill()
                thread.join()


def call(*arguments: str) -> None:
    """A command in this process, which must succeed."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = alphastream(list(arguments))
    assert code == 0, f"{arguments} exits with {code}: {said.getvalue()}"


def append(day: Path, data: Path) -> None:
    call("preprocess", str(day), "--out", str(data), *(["--append"] if data.exists() else []))


def waits_after(run: Path) -> int:
    """After how many generations the run waits for the next; 0 if it has not waited since it last began."""
    waiting = 0
    for record in read_records(run / "events.jsonl"):
        if record["event"] == "waiting":
            waiting = record["generations"]
        elif record["event"] in ("start", "resume"):
            waiting = 0
    return waiting


def write_days(folder: Path, count: int, chance: random.Random) -> list[Path]:
    """A log of so many days of random lengths."""
    call("sample", str(folder), "--rows", str(count * MOST_ROWS), "--days", str(count), "--seed", "4")
    days = sorted(path for path in folder.iterdir() if path.name.startswith("day"))
    for day in days:
        lines = day.read_bytes().splitlines(keepends=True)
        day.write_bytes(b"".join(lines[: chance.randint(20, MOST_ROWS)]))
    return days


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of evals.jsonl less what the clock says."""
    timed = ("seconds", "training_seconds")
    return [{key: record[key] for key in record if key not in timed} for record in read_records(run / "evals.jsonl")]


def difference(run: Path, whole: Path) -> str | None:
    """What of a run's end is not as in `whole`; None if it is the same."""
    (tensors, steps, estimates), (expected, all_steps, all_estimates) = lasting(run), lasting(whole)
    if steps != all_steps:
        return "the steps differ"
    if estimates != all_estimates:
        return "the estimates differ"
    if evaluations(run) != evaluations(whole):
        return "the evaluations differ"
    return None if same_bits(tensors, expected) else "the weights differ"


def write_settings(folder: Path, data: Path, *, ends: bool) -> Path:
    """Of a run that waits for ever, or `ends` where the log does."""
    path = folder / f"{data.name}-{'ends' if ends else 'waits'}.toml"
    path.write_text(SETTINGS.format(data=data, idle="follow_idle_seconds = 0" if ends else ""))
    return path


def grow(
    server: ForkServer, folder: Path, *, generations: int, kills: int, chance: random.Random
) -> tuple[str | None, Counter[str]]:
    """What went wrong, if anything did, and when the generations came."""
    days = write_days(folder / "days", generations, chance)
    for day in days:
        append(day, folder / "complete")
    whole = Run(write_settings(folder, folder / "complete", ends=True), folder / "whole", server=server)
    data = folder / "data"
    append(days[0], data)
    assert whole.end(at_most_seconds=MOST_SECONDS) == 0, whole.said()
    moments = [chance.choice(FATAL) for _ in range(kills)]
    moments += [chance.choice(MOMENTS) for _ in range(generations - 1 - kills)]
    chance.shuffle(moments)
    config = write_settings(folder, data, ends=False)
    growth = Growth(server=server, config=config, data=data, run=folder / "run", chance=chance)
    for number, (day, when) in enumerate(zip(days[1:], moments, strict=True), 1):
        growth.arrive(day, when, generations=number)
    growth.kill()
    last = Run(write_settings(folder, data, ends=True), folder / "run", server=server)
    counts = Counter(f"came while it {when}" for when in moments)
    counts["kills"] = growth.kills
    if last.end(at_most_seconds=MOST_SECONDS) != 0:
        return f"the last process failed: {last.said()}", counts
    epochs = [step[1] for step in lasting(folder / "run")[1]]
    if any(now < before for before, now in pairwise(epochs)) or set(epochs) != set(range(generations)):
        return "a generation was left out, or came again", counts
    return difference(folder / "run", folder / "whole"), counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.arrivals", description=__doc__)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10, help="beside the last, fewer than generations")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.kills >= asked.generations:
        parser.error("at most one kill for each generation after the first")
    with tempfile.TemporaryDirectory(prefix="arrivals-") as name, ForkServer() as server:
        problem, counts = grow(
            server, Path(name), generations=asked.generations, kills=asked.kills, chance=random.Random(asked.seed)
        )
    print(", ".join(f"{number:,} {what}" for what, number in counts.items()))
    print(problem or "as one run over all of them from the start, bit for bit")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
