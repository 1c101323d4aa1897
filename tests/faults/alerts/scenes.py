"""Real runs in every state that an alert is for, and in those that none may fire in.

Each is a generator: it starts a run, brings it into its state, yields what it waits for, and stops it. What has fired
by the end is compared with `EXPECTED`.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.alerts.panels import EMPTY, FOLLOWED, Curve, curves
from tests.faults.alerts.stage import Actor, Play, Stage
from tests.faults.runs import Run
from tests.faults.small_disk import fill
from tests.tiny_data import flip_in_row_group, write_tiny

QUIET = ("healthy", "waiting")
"""Runs on which nothing may fire however long the others take."""


@dataclass(frozen=True)
class Alerts:
    """Of one run."""

    fire: frozenset[str]
    may: frozenset[str] = frozenset()
    """Those that are right as well, where the run is in its state for long enough."""


CROWDED = "DataBound"
"""Right as well on a run of short steps that has few cores to share with a dozen others, and waits for its rows. Not on
the healthy one, whose steps are long."""


def _alerts(fire: str = "", *, may: str = "") -> Alerts:
    named = [frozenset(f"Alphastream{name}" for name in text.split()) for text in (fire, may)]
    return Alerts(named[0], named[1])


EXPECTED = {
    "healthy": _alerts(),
    "waiting": _alerts(),
    "blocked": _alerts("Hung Stalled DataBound CheckpointOld"),
    "not started": _alerts("NotStarted CheckpointOld", may="DataBound"),
    "diverged": _alerts("StepsWithheld RolledBack Failed", may=f"LossNotFinite CheckpointOld {CROWDED}"),
    "not finite": _alerts("LossNotFinite StepsWithheld", may=f"CheckpointOld {CROWDED}"),
    "killed": _alerts("Down"),
    "slow rate": _alerts("RateFarFromAlpha CheckpointOld", may=CROWDED),
    "no rate": _alerts("AlphaUndefined", may=CROWDED),
    "damaged": _alerts("RowsLeftOut ReadsRetried", may=CROWDED),
    "overfitting": _alerts("ValidationWorse LossDiverging", may=CROWDED),
    "disk": _alerts("DiskWillBeFull DiskTooSmall CheckpointFailing RecordsLost", may=f"CheckpointOld {CROWDED}"),
    "reads fail": _alerts("ReadsRetried", may="DataBound Stalled CheckpointOld"),
}
"""What fires on each run, and nothing else. All but the first two are stopped once it has."""
NOT_CAUSED: dict[str, str] = {}
"""Alerts that no short run can cause, and why; their tests are promtool's alone."""


@dataclass(kw_only=True)
class Seen:
    """What the boards showed of the healthy run."""

    missing: dict[str, set[tuple[str, str]]]
    """Curves without a number, by the state of the run."""


@dataclass(kw_only=True)
class Scenes:
    """All plays on one stage."""

    stage: Stage
    log: Path
    """A folder of preprocessed rows that something can be learned from."""
    seen: Seen

    def healthy(self) -> Play:
        """Trains, is stopped, trains on, is stopped, and ends; on the boards all the time."""
        actor = self.stage.actor("healthy", self.log)
        measuring = ("--stepsize.policy", "observe", "--stepsize.interval", "4", "--stepsize.count", "1")
        options = (
            *measuring,
            "--stepsize.start",
            "0",
            "--eval.every_steps",
            "50",
            "--optimizer.lr",
            "0.03",
            "--data.batch_rows",
            "256",
        )
        wanted = [curve for curve in curves() if curve.name not in EMPTY]
        for state in ("trains", "resumed"):
            actor.begin(*options)
            yield self._shown(state, actor, wanted)
            steps = actor.metric("run_step")
            assert actor.stop() == 143, self.stage.fleet.said(actor.processes[-1])
        actor.begin(*options, "--budget.steps", f"{steps + 200:.0f}")
        yield self.stage.alone("healthy", "waiting")
        assert actor.end() == 0, self.stage.fleet.said(actor.processes[-1])

    def waiting(self) -> Play:
        """Has trained on all rows of a log that is followed, and waits to the end."""
        data = write_tiny(self.stage.folder / "waiting-data", {"train": [[640, 640]], "validation": [[64]]})
        actor = self.stage.actor("waiting", data)
        actor.begin("--data.follow", "--data.follow_poll_seconds", "0.2", "--eval.progressive_rows", "512")
        wanted = [curve for curve in curves() if EMPTY.get(curve.name) == FOLLOWED]
        yield lambda: actor.metric("waiting_for_generation") == 1
        yield self._shown("waits", actor, wanted)
        yield self.stage.alone("waiting")
        assert actor.stop() == 143

    def _shown(self, state: str, actor: Actor, wanted: list[Curve]) -> Callable[[], bool]:
        """Until every curve has a number; what has none yet is kept for who looks at the end."""

        def shown() -> bool:
            starts = actor.metric("run_starts_total")
            if math.isnan(starts) or (starts != len(actor.processes)):
                return False
            left = self.seen.missing.setdefault(state, {curve.name for curve in wanted})
            left -= {c.name for c in wanted if c.name in left and c.shows(self.stage.prometheus, actor.instance)}
            return not left

        return shown

    def blocked(self) -> Play:
        """Its fourth shard is a pipe that nobody writes to: it waits, after a checkpoint."""
        data = self._tiny("blocked")
        (data / "train/part-00003.parquet").rename(data / "aside.parquet")
        os.mkfifo(data / "train/part-00003.parquet")
        return self._fire(self.stage.actor("blocked", data, shuffle="none"), "--watchdog.data_wait_seconds", "2")

    def not_started(self) -> Play:
        """The same of its first shard."""
        data = self._tiny("not started")
        (data / "train/part-00000.parquet").rename(data / "aside.parquet")
        os.mkfifo(data / "train/part-00000.parquet")
        return self._fire(self.stage.actor("not started", data, shuffle="none"))

    def diverged(self) -> Play:
        """Every step is withheld from the first one on; it goes back three times, and ends with 3."""
        actor = self.stage.actor("diverged", self._tiny("diverged"))
        actor.begin(*HOPELESS, "--divergence.nonfinite_steps", "200")
        yield actor.fired(*EXPECTED["diverged"].fire)
        assert actor.end() == 3

    def not_finite(self) -> Play:
        """The same, and it never goes back."""
        data = self._tiny("not finite")
        return self._until_fired("not finite", data, *HOPELESS, "--divergence.nonfinite_steps", "1000000000")

    def killed(self) -> Play:
        actor = self.stage.actor("killed", self._tiny("killed"))
        actor.begin()
        yield lambda: actor.metric("steps_total") > 0
        actor.signal(signal.SIGKILL)
        assert actor.end() == -signal.SIGKILL
        yield actor.fired("AlphastreamDown")

    def slow_rate(self) -> Play:
        """A rate far too small, by what α* says; and no checkpoint, since none was asked for."""
        options = ("--stepsize.policy", "observe", "--stepsize.interval", "2", "--stepsize.count", "1")
        actor = self.stage.actor("slow rate", self.log, checkpoint_steps=10**9)
        return self._fire(actor, *options, "--stepsize.start", "0", "--optimizer.lr", "1e-4")

    def no_rate(self) -> Play:
        """A rate so small that no weight moves."""
        options = ("--stepsize.policy", "observe", "--stepsize.interval", "2", "--stepsize.count", "1")
        return self._until_fired("no rate", self._tiny("no rate"), *options, "--optimizer.lr", "1e-38")

    def damaged(self) -> Play:
        """One flipped bit, in rows that every epoch comes to: read again first, then left out."""
        data = self._tiny("damaged")
        flip_in_row_group(data / "train/part-00005.parquet", 1)
        return self._until_fired("damaged", data, "--data.damaged", "skip")

    def overfitting(self) -> Play:
        """Learns a few rows by heart, which validation does not forgive; then continued at a rate far too high.

        An epoch is two batches, so that it may well be bound by its data.
        """
        data = write_tiny(self.stage.folder / "overfitting-data", {"train": [[128]], "validation": [[128]]})
        actor = self.stage.actor("overfitting", data)
        options = ("--optimizer.name", "nadamw", "--eval.every_steps", "20", "--eval.splits", "validation")
        actor.begin(*options, "--optimizer.lr", "0.01")
        yield actor.fired("AlphastreamValidationWorse")
        yield lambda: self.stage.mean_loss(actor) < 0.4
        actor.stop()
        actor.begin(*options, "--optimizer.lr", "1")
        yield actor.fired("AlphastreamLossDiverging")
        actor.stop()

    def disk(self, small: Path) -> Play:
        """Somebody else fills its disk: half, then all of it; then there is room again."""
        actor = self.stage.actor("disk", self._tiny("disk"), folder=small)
        actor.begin()
        yield lambda: actor.metric("last_checkpoint_timestamp_seconds") > 0
        fill(small, leave_bytes=30 << 20)
        yield actor.fired("AlphastreamDiskWillBeFull")
        (small / "more").mkdir()
        with suppress(OSError):  # the run writes meanwhile, and there is less room than a moment ago
            fill(small / "more", leave_bytes=0)
        yield actor.fired(*EXPECTED["disk"].fire)
        for folder in (small, small / "more"):
            (folder / "ballast").unlink()
        assert actor.stop() == 143

    def reads_fail(self, library: Path) -> Play:
        """The disk of one shard answers with errors; a process of its own, for the library that makes them."""
        failing = self.stage.folder / "failing"
        failing.touch()
        actor = self.stage.actor("reads fail", self._tiny("reads fail"), shuffle="none")
        environment = {
            "LD_PRELOAD": str(library),
            "BLOCK_READS_OF": "train/part-00003",
            "FAIL_READS_WHILE": str(failing),
        }
        run = Run(actor.config, actor.path, environment=environment)
        self.stage.at_end.callback(run.process.kill)
        yield actor.fired("AlphastreamReadsRetried")
        failing.unlink()
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 143, run.said()

    def all(self, *, small: Path | None, library: Path | None) -> dict[str, Play]:
        """Every play that this machine can give, by its name in `EXPECTED`."""
        plays = {
            "healthy": self.healthy(),
            "waiting": self.waiting(),
            "blocked": self.blocked(),
            "not started": self.not_started(),
            "diverged": self.diverged(),
            "not finite": self.not_finite(),
            "killed": self.killed(),
            "slow rate": self.slow_rate(),
            "no rate": self.no_rate(),
            "damaged": self.damaged(),
            "overfitting": self.overfitting(),
        }
        if small is not None:
            plays["disk"] = self.disk(small)
        if library is not None:
            plays["reads fail"] = self.reads_fail(library)
        return plays

    def _tiny(self, name: str) -> Path:
        """Rows that nothing can be learned from, in six shards."""
        return write_tiny(
            self.stage.folder / f"{name}-data",
            {"train": [[512, 512]] * 6, "validation": [[256]], "test": [[256]]},
        )

    def _until_fired(self, name: str, data: Path, *options: str) -> Play:
        return self._fire(self.stage.actor(name, data), *options)

    def _fire(self, actor: Actor, *options: str) -> Play:
        name = next(name for name, each in self.stage.actors.items() if each is actor)
        actor.begin(*options)
        yield actor.fired(*EXPECTED[name].fire)
        assert actor.stop() == 143, self.stage.fleet.said(actor.processes[-1])


HOPELESS = ("--optimizer.lr", "1e30", "--divergence.nonfinite_share", "1.0")
