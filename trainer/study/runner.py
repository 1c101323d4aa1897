"""Makes the runs of a study, one after the other or several at once, and continues where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from pipeline.errors import InputError
from pipeline.shards import Manifest, write_atomically
from trainer.config import ConfigError, load_config
from trainer.console import Console
from trainer.loop import Stop
from trainer.process import Request, stop_signals
from trainer.study.definition import RESOLVED, Study, StudyRun, changed_key
from trainer.study.progress import StudyLine
from trainer.study.report import write_results
from trainer.study.results import Result, RunOutcome, collect, collect_run, study_on_this_machine
from trainer.study.workers import RunError, runs_at_once, runs_in_turn


@dataclass(frozen=True, kw_only=True)
class StudyEnd:
    """How far a study has come."""

    results: tuple[Result, ...]
    """Of every run, in the study's order."""
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0, also if runs diverged: that is a result."""
        return Stop.INTERRUPTED.exit_code if self.interrupted else 0

    def __str__(self) -> str:
        counts = {outcome: sum(result.outcome is outcome for result in self.results) for outcome in RunOutcome}
        text = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count)
        return f"{len(self.results):,} runs: {text}" + (
            "; run the same command to continue" if self.interrupted else ""
        )


def run_study(study: Study, out: Path, *, jobs: int = 1, arms: tuple[str, ...] = (), console: Console) -> StudyEnd:
    """Makes every run of the study (of `arms`, if given) that is not finished, in `out`/runs.

    Writes `out`/results.csv and summary.csv after each of them. A run that diverges is a result like any other.
    Raises: ConfigError and InputError for what the user gave, naming the run if it is one run's; OSError if
    reading or writing failed or a process of a run was killed.
    """
    _check(study_on_this_machine(study, out) or study, out, jobs, arms)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{out}: another process is running this study; wait for it, or give another --out") from None
    try:
        return _make_runs(study, out, jobs, arms, console)
    finally:
        lock.release()


def _check(study: Study, out: Path, jobs: int, arms: tuple[str, ...]) -> None:
    """Refuses what cannot work before anything is written."""
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; give at least 1")
    if jobs > 1 and any(run.config.metrics.port > 0 for run in study.runs):
        raise ConfigError(f"--jobs {jobs}: runs cannot share one metrics.port; give 0 (any free one) or -1 (none)")
    for arm in arms:
        if arm not in study.varied:
            raise ConfigError(f"--arms names {arm!r}; the study has {', '.join(study.varied)}")
    for path in {run.config.data.path for run in study.runs}:
        Manifest.load(path)
    for run in study.runs:
        kept = out / run.path / "config.toml"
        changed = changed_key(run.config, load_config(kept)) if kept.exists() else None
        if changed is not None:
            key, now, before = changed
            raise ConfigError(
                f"{out / run.path}: was started with {key} = {before!r}, the study now gives {now!r}; "
                "change it back, or give another --out"
            )


def _make_runs(study: Study, out: Path, jobs: int, arms: tuple[str, ...], console: Console) -> StudyEnd:
    _keep(study, out)
    results = collect(study, out)
    for result in results.values():
        if result.outcome.final:
            _tidy(study, out / result.run.path)
    chosen = [run for run in study.runs if not arms or run.arm in arms]
    done = sum(results[run.name].outcome.final for run in chosen)
    console.say(f"{out}: {len(chosen):,} runs, {done:,} of them done")
    with (
        stop_signals(partial(_announce, console)) as stopping,
        console.progress("study", len(chosen), unit="runs", start=done) as progress,
    ):
        line = StudyLine(progress, console, done=done)
        make = runs_in_turn if jobs == 1 else partial(runs_at_once, jobs=jobs)
        now = study
        for part in _parts(study, chosen):
            # what a second is may be known only once the runs before have been made
            now = study_on_this_machine(study, out)
            if now is None and any(run.config.budget.seconds for run in part):
                if stopping.is_set():
                    break
                raise _no_clock(study)
            results = collect(now or study, out)
            names = {run.name for run in part}
            waiting = [run for run in (now or study).runs if run.name in names and not results[run.name].outcome.final]
            try:
                for run, stop in make(waiting, out, listen=line.listen, stopping=stopping.is_set):
                    if not stop.unfinished:
                        line.finished(run)
                        _tidy(study, out / run.path)
                    results[run.name] = collect_run(now or study, run, out)
                    write_results(now or study, out, list(results.values()))
            except RunError as failed:
                _raise_cause(failed)
    now = study_on_this_machine(study, out) or study
    results = collect(now, out)
    end = StudyEnd(
        results=tuple(results.values()), interrupted=any(not results[run.name].outcome.final for run in chosen)
    )
    write_results(now, out, list(end.results))
    return end


def _parts(study: Study, chosen: Sequence[StudyRun]) -> list[list[StudyRun]]:
    """The runs to make, those with a budget in seconds last if the study's clock has to be read before."""
    if study.settings.clock is None:
        return [list(chosen)]
    return [[run for run in chosen if (run.config.budget.seconds is not None) is late] for late in (False, True)]


def _no_clock(study: Study) -> ConfigError:
    assert study.settings.clock is not None
    arm = study.settings.clock.arm
    return ConfigError(
        f"arm {arm!r} has no run that finished, and its time is the unit of this study's budgets in seconds "
        f"(study.clock); make it too: --arms {arm} ..."
    )


def _announce(console: Console, name: str, request: Request) -> None:
    if request is Request.STOP:
        console.say(f"{name}: stopping and saving; again to stop at once")


def _keep(study: Study, out: Path) -> None:
    """Writes the study as it is run, for `alphastream report` and for people."""
    write_atomically(out / RESOLVED, study.to_toml().encode())


def _tidy(study: Study, run: Path) -> None:
    if not study.settings.keep_checkpoints:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _raise_cause(failed: RunError) -> NoReturn:
    """The run's own error; what the user gave is named together with the run."""
    cause = failed.__cause__
    if isinstance(cause, InputError):
        raise ConfigError(f"run {failed.run.name}: {cause}") from failed
    assert cause is not None
    raise cause
