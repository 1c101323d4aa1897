"""Every call of the system that a save makes, each once fatal and once refused: `python -m tests.faults.save_calls`.

A kill comes before the call is made; what the run left must be whole for `alphastream verify`, and the same command
must end it like one that was never disturbed, bit for bit. A refusal is an error of the call, alone or with all of its
kind after it; the run must end by itself in the same way. Needs strace.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.fork_server import ForkServer
from tests.faults.forked_runs import ForkedRuns, TracedSave, why_untraced
from tests.faults.small_run import SAVES, same_end, small_run

MIDDLE = tuple(TracedSave(step=step, options=()) for step in SAVES[:-1])
FINAL = TracedSave(step=SAVES[-1], final=True, options=())


@dataclass(frozen=True)
class Point:
    """The `number`th call of a kind, counted from 1, of a save."""

    save: TracedSave
    call: str
    number: int

    def traced(self, what: str, *, onwards: bool = False) -> TracedSave:
        """The save with `what`, a signal or an error, at this call, or at it and all others of its kind `onwards`."""
        options = ("-e", f"trace={self.call}", "-e", f"inject={self.call}:{what}:when={self.number}{'+' * onwards}")
        return replace(self.save, options=options)

    def __str__(self) -> str:
        return f"{'last save' if self.save.final else f'save of step {self.save.step}'}, {self.call} {self.number}"


def points_of(save: TracedSave, calls: list[str]) -> Iterator[Point]:
    """All calls of a save, in order."""
    made = Counter[str]()
    for call in calls:
        made[call] += 1
        yield Point(save, call, made[call])


class Trials:
    """Runs that are disturbed once, compared with `whole`, which was not."""

    def __init__(self, runs: ForkedRuns, folder: Path) -> None:
        self.runs, self.folder = runs, folder
        self.config = small_run(folder)
        self.whole = folder / "whole"
        assert runs.train(self.config, self.whole) == 0, runs.log.read_text()

    def points(self, save: TracedSave) -> list[Point]:
        run = self._new()
        return list(points_of(save, self.runs.calls_of(self.config, run, save)))

    def kill(self, point: Point) -> str | None:
        """What was wrong after a kill at `point`; None if nothing."""
        run = self._new()
        code = self.runs.train(self.config, run, traced=point.traced("signal=KILL"))
        if code != -9:
            return f"exit code {code} and not killed"
        if problem := self._damage(run):
            return f"after the kill {problem}"
        return self._ends(run)

    def refuse(self, point: Point, error: str = "ENOSPC", *, onwards: bool = False) -> str | None:
        """What was wrong with a run whose call, or calls `onwards`, gave `error`; None if nothing."""
        run = self._new()
        code = self.runs.train(self.config, run, traced=point.traced(f"error={error}", onwards=onwards))
        if not self.runs.trace.exists() or "(INJECTED)" not in self.runs.trace.read_text():
            return "nothing was refused"
        return self._difference(run, code)

    def refuse_for_good(self, point: Point, error: str = "ENOSPC") -> str | None:
        """As `refuse` `onwards`, of the last save, which is given up; then the disk has room and the run continues."""
        run = self._new()
        traced = point.traced(f"error={error}", onwards=True)
        code = self.runs.train(self.config, run, "--checkpoint.final-retry-seconds", "0", traced=traced)
        said = self.runs.log.read_text()
        if code not in (0, 74) or "Traceback" in said:
            return f"exit code {code}: {said[-500:]}"
        return self._ends(run)

    def _ends(self, run: Path) -> str | None:
        return self._difference(run, self.runs.train(self.config, run))

    def _difference(self, run: Path, code: int) -> str | None:
        if code != 0:
            return f"exit code {code}: {self.runs.log.read_text()[-500:]}"
        if problem := self._damage(run):
            return problem
        if not same_end(run, self.whole):
            return "the end differs"
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        # what a finished run was about to delete stays until there is a next save
        if SAVED not in names or any(name.startswith(".partial-step") for name in names):
            return f"left {names}"
        shutil.rmtree(run)
        return None

    def _damage(self, run: Path) -> str | None:
        """What `alphastream verify` finds."""
        code = self.runs.call("verify", str(run))
        return f"verify exits with {code}: {self.runs.log.read_text()}" if code else None

    def _new(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))


SAVED = f"step-{SAVES[-1]:08d}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--error", default="ENOSPC", help="of the calls that are refused")
    parser.add_argument("--only", choices=("kill", "refuse"), help="by default both")
    parser.add_argument("--last", action="store_true", help="the last save of the run alone")
    asked = parser.parse_args()
    if reason := why_untraced():
        print(reason)
        return 1
    failed = 0
    with tempfile.TemporaryDirectory() as name, ForkServer() as server:
        runs = ForkedRuns(server, Path(name))
        trials = Trials(runs, Path(name))
        for save in (FINAL,) if asked.last else (*MIDDLE, FINAL):
            points, counts = trials.points(save), Counter[str]()
            for point in points:
                found: dict[str, str | None] = {}
                if asked.only != "refuse":
                    found["killed"] = trials.kill(point)
                if asked.only != "kill":
                    found["refused"] = trials.refuse(point, asked.error)
                    later = trials.refuse_for_good if save.final else lambda *to: trials.refuse(*to, onwards=True)
                    found["refused from there on"] = later(point, asked.error)
                counts.update(found.keys())
                for what, problem in found.items():
                    if problem is not None:
                        failed += 1
                        print(f"{point}, {what}: {problem}", flush=True)
            kinds = ", ".join(f"{call} {number}" for call, number in Counter(p.call for p in points).most_common())
            done = ", ".join(f"{number} {what}" for what, number in counts.items())
            print(f"{'last save' if save.final else f'save of step {save.step}'}: {kinds}; {done}", flush=True)
    print(f"{failed} failed" if failed else "all ended like an undisturbed run, bit for bit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
