"""The long-running training job: builds a run, continues it from its checkpoint, serves its state, trains, closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.receivers import ServiceManager, TensorBoard
from pipeline.addresses import without_secrets
from pipeline.errors import InterruptedWaitError, NoRowsYetError
from pipeline.shards import Manifest, warnings_of_labels
from trainer.config import Config, config_errors
from trainer.console import Console
from trainer.divergence import Divergence
from trainer.job.checkpointing import Checkpointing, open_checkpointing
from trainer.job.decided import decided, of_data
from trainer.job.device import device_memory, step_clock
from trainer.job.ending import end_exported, exit_of, export_earlier_end, write_textfile
from trainer.job.generations import LogWait, pinned, say_what_is_left_out
from trainer.job.hangs import watched
from trainer.job.lineage.best import follow_validation, tell_of_best
from trainer.job.lineage.rollback import roll_back
from trainer.job.lineage.start import (
    checkpoint_to_continue,
    divergence_advice,
    leave_later,
    tell_of_beginning,
    tell_of_changes,
    warn_of_changes,
)
from trainer.job.observer import Outlets, RunObserver
from trainer.job.ranks import Agreement, RankReporter, SilentDirectory, communication_timed, silenced, timeout_warning
from trainer.job.recording.replay import replay_history
from trainer.job.run_directory import RunDirectory
from trainer.job.saving import watched_disk
from trainer.job.served import served
from trainer.job.training_state import TrainingState, open_training
from trainer.loop import Position, Stop, Timetable
from trainer.process import Requests, Watchdog, stop_signals
from trainer.ranks import ALONE, Ranks
from trainer.records import RunHistory, checkpoint_steps, starts_of

START_SECONDS = 30.0
"""Waiting longer than this for the first rows of all is waiting for data, no matter how much there was to compile."""


def train(
    config: Config,
    run: str | Path,
    *,
    console: Console,
    manager: ServiceManager | None = None,
    from_checkpoint: int | None = None,
    ranks: Ranks = ALONE,
) -> Stop:
    """Trains `config` in the run directory `run`, continuing from its newest whole checkpoint.

    With `from_checkpoint` it goes on from the checkpoint of that step; later ones are set aside.
    `manager` is whoever started this process as a service and waits for its news. Of several `ranks` all call it; the
    first alone talks, serves and keeps records.

    Raises: pipeline.errors.InputError for what the user gave (exit code 2), OSError if reading or writing failed
    (74); the run's event log has it too, unless the run directory could not be opened.
    """
    manager = ServiceManager() if manager is None else manager
    config = decided(config, run)
    if not ranks.first:
        config, console, manager = silenced(config), Console(quiet=True), ServiceManager()
    manager.starting("opening the data")
    folder = Manifest.load(config.data.path)
    config = of_data(config, folder)
    manifest, continues = pinned(folder, config, Path(run)), bool(checkpoint_steps(run))
    with (
        open_training(config, manifest, ranks=ranks, continues=continues) as state,
        (RunDirectory if ranks.first else SilentDirectory)(run, config) as directory,
        failures_recorded(directory),
    ):
        outlets = open_outlets(config, state, directory, console, manager)
        with (
            communication_timed(ranks, outlets.clock),
            outlets.tensorboard,
            watched_disk(directory.path, outlets.metrics.disk_free),
            served(config.metrics, outlets) as readiness,
            end_exported(outlets),
            watched(config.watchdog, outlets, readiness.mark_hung) as watchdog,
        ):
            manager.starting("looking for a checkpoint")
            ranks.told_by_first(None)  # all have read the directory as it is
            position = resume(config, state, outlets, from_checkpoint=from_checkpoint)
            say_what_is_left_out(folder, state.manifest, outlets.console)
            if warning := timeout_warning(config, ranks.ranks):
                outlets.warn(warning, step=position.step)
            with (
                stop_signals(outlets.heard) as requests,
                console.progress("training", state.total_steps, unit="steps", start=position.step) as line,
                open_checkpointing(state, outlets, config.checkpoint, goes_on_from=position.step) as checkpointing,
            ):
                job = Job(
                    config=config,
                    state=state,
                    outlets=outlets,
                    observer=RunObserver(outlets, state.feed, line, progressive=state.progressive),
                    checkpointing=checkpointing,
                    requests=requests,
                    log_wait=LogWait(
                        feed=state.feed,
                        outlets=outlets,
                        idle_seconds=config.data.follow_idle_seconds,
                        budget_seconds=config.watchdog.data_wait_seconds,
                    ),
                    watchdog=watchdog,
                    agreement=Agreement(ranks=ranks),
                    rank_reporter=RankReporter(ranks=ranks, outlets=outlets),
                )
                watchdog.saving_seconds = checkpointing.thread.seconds
                watchdog.stop_by(requests.set)
                return job.run(position, readiness.mark_ready)


@contextmanager
def failures_recorded(directory: RunDirectory) -> Iterator[None]:
    """Within it an error is written to the run's event log on its way out."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk, which the error tells of already
            directory.event("failed", message=f"{type(error).__name__}: {error}")
        raise


def open_outlets(
    config: Config, state: TrainingState, directory: RunDirectory, console: Console, manager: ServiceManager
) -> Outlets:
    """The outlets of a run that has said nothing yet; its clock starts here.

    Raises: ConfigError if curves for TensorBoard are asked for, and its package is not installed.
    """
    clock = step_clock(state.learner.device)
    every_steps = config.metrics.tensorboard_every_steps
    with config_errors():
        tensorboard = TensorBoard(
            directory.path / "tensorboard" if every_steps else None,
            every_steps=every_steps,
            alpha_delay=config.stepsize.delay or 0,
            warn=console.warn,
        )
    live = LiveStatus(
        clock, run=str(directory.path), total_steps=state.total_steps, budget_seconds=config.budget.seconds
    )
    metrics = Metrics(
        open_phases=clock.open_phases,
        device_memory=device_memory(state.learner.device),
        seconds_left=live.seconds_left,
    )
    metrics.run(str(directory.path), starts=starts_of(directory.path) + 1)
    return Outlets(
        directory=directory,
        metrics=metrics,
        live=live,
        clock=clock,
        console=console,
        manager=manager,
        tensorboard=tensorboard,
    )


def resume(config: Config, state: TrainingState, outlets: Outlets, *, from_checkpoint: int | None = None) -> Position:
    """Puts the run back to its newest whole checkpoint, or that of a step, its records cut back to it; or begins it.

    Raises: as `load_latest` and `TrainingState.load`.
    """
    directory = outlets.directory
    found = checkpoint_to_continue(directory.path, step=from_checkpoint, state=state)
    if found is None:
        directory.begin(config, records={})
        directory.event("start", step=0)
        tell_of_beginning(config, state, outlets)
        return Position()
    position = state.load(found, run=directory.path, before=directory.before)
    if from_checkpoint is not None:
        leave_later(directory.path, position.step, outlets)
    directory.begin(config, records=found.state["records"])
    directory.event("resume", step=position.step, checkpoint=found.path.name)
    tell_of_changes(directory.changes, found, state, outlets, step=position.step)
    outlets.metrics.set("last_checkpoint_step", position.step)
    outlets.metrics.set("rate_factor", state.recovery.rate_factor)
    outlets.flush(step=position.step)
    warn_of_changes(found, state, outlets)
    outlets.live.resume(
        step=position.step,
        epoch=state.feed.position.epoch,
        rows=position.rows,
        training_seconds=position.training_seconds,
    )
    if directory.writes:
        outlets.estimates.extend(replay_history(RunHistory.load(directory.path), outlets.live))
    outlets.metrics.progress(position.step, total_steps=state.total_steps)
    outlets.console.say(f"continuing {directory.path} at step {position.step:,}")
    return position


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's work on one run: the loop, and what the loop asks for between its steps."""

    config: Config
    state: TrainingState
    outlets: Outlets
    observer: RunObserver
    checkpointing: Checkpointing
    requests: Requests
    log_wait: LogWait
    watchdog: Watchdog
    agreement: Agreement
    rank_reporter: RankReporter

    def agree(self, position: Position, *, scheduled: bool) -> None:
        saves = self.checkpointing
        position.training_seconds = self.agreement.reach(
            stop=self.requests.is_set(),
            save_asked=self.requests.save_asked(),
            busy=saves.busy,
            save_due=saves.due(position, scheduled=scheduled),
            broken_weights=saves.broken_weights,
            seconds=position.training_seconds,
        )
        self.rank_reporter.between_steps()

    def stopping(self) -> bool:
        return self.agreement.stop or (self.state.ranks.alone and self.requests.is_set())

    def save_asked(self) -> bool:
        """Never while a save is under way, after which one that is asked for comes."""
        if not self.agreement.save_asked:
            return False
        self.agreement.save_asked = False
        self.requests.save_begins()
        return True

    def _interrupted(self) -> bool:
        """Whether a wait for rows is to end, because the loop has something else to do; asked while it waits."""
        self.poll_save()
        saves = self.checkpointing
        return self.stopping() or saves.retries.due(scheduled=False) or (self.requests.save_asked() and not saves.busy)

    def run(self, position: Position, mark_ready: Callable[[], None]) -> Stop:
        """Trains from `position` to the end of the budget, the target, divergence or a signal."""
        loop = self.state.loop(
            clock=self.outlets.clock,
            timetable=Timetable(
                budget=self.config.budget,
                total_steps=self.state.total_steps,
                evaluation=self.config.eval,
                checkpoint=self.config.checkpoint,
            ),
            host=self,
            observer=self.observer,
            position=position,
        )
        ended = loop.ended()
        if ended is not None:
            loop.report_undelivered()
            export_earlier_end(self.outlets, ended)
            self.outlets.manager.stopping(f"nothing to do, {ended.text} already")
            self.outlets.console.say(
                f"{self.outlets.directory.path}: nothing to do, {ended.text} at step {position.step:,} already"
            )
            return ended
        self.outlets.tensorboard.begin(steps=position.step)
        self._warn_of_splits()
        if (notice := self.state.learner.precision.without_effect()) is not None:
            self.outlets.console.warn(notice)
        self.outlets.live.state("training")
        mark_ready()
        self.outlets.manager.ready()
        self._fill()
        stop = loop.run()
        if stop is Stop.INTERRUPTED and self.watchdog.gave_up:
            stop = Stop.HUNG
        self._record_end(stop, position)
        return stop

    def _fill(self) -> None:
        """Compiles and reads ahead: start-up, and no step's wait for rows, unless it takes longer than that does."""
        feed = self.state.feed
        if self.state.ranks.alone:  # of several all wait, and see to it together
            feed.interrupted = self._interrupted
        self.state.retries.listen = self.outlets.retry
        with suppress(InterruptedWaitError, NoRowsYetError):  # the loop sees to what it was interrupted for
            if not feed.fill(seconds=START_SECONDS):
                with self.outlets.clock.pause_phase("data_wait"):
                    feed.fill()

    def evaluate(self, position: Position) -> dict[str, float] | None:
        """The loss of every split; None, and nothing recorded, if a signal came in between."""
        self.outlets.live.state("evaluating")
        self.rank_reporter.record(position.step)
        found = []
        manifest = self.state.seen()
        for split in (name for name in self.config.eval.splits if manifest.splits[name].rows):
            began = time.monotonic()
            try:
                evaluation = self.state.learner.evaluate(
                    self.config.data,
                    manifest,
                    self.config.eval,
                    split,
                    stopping=self._polling,
                    interrupted=self.stopping,
                    retries=self.state.retries,
                )
            except InterruptedWaitError:
                return None
            if self.stopping():
                return None
            found.append((evaluation, time.monotonic() - began))
        for evaluation, seconds in found:
            self.observer.on_evaluation(
                evaluation, step=position.step, seconds=seconds, training_seconds=position.training_seconds
            )
        self.outlets.live.state("training")
        losses = {evaluation.split: evaluation.loss for evaluation, _ in found}
        if "validation" in losses:
            follow_validation(self.state.trend, self.outlets, step=position.step, loss=losses["validation"])
        return losses

    def _polling(self) -> bool:
        """`stopping`, for an evaluation to ask batch by batch: a save that ends meanwhile is told of then."""
        self.watchdog.beat()
        self.poll_save()
        self.outlets.manager.alive()
        self.agreement.reach(stop=self.requests.is_set(), broken_weights=self.checkpointing.broken_weights)
        return self.stopping()

    def save(self, position: Position, *, final: bool) -> None:
        if final:
            self.outlets.manager.stopping("saving")
        self.rank_reporter.record(position.step)
        self.checkpointing.save(position, final=final)

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        return self.agreement.save_due

    def poll_save(self) -> None:
        self.checkpointing.poll()

    def drain_save(self) -> None:
        self.checkpointing.drain()

    def await_rows(self, position: Position) -> bool:
        return self.log_wait.wait(step=position.step)

    def broken_weights(self) -> int | None:
        return self.agreement.broken_weights

    def roll_back(self, position: Position, divergence: Divergence) -> bool:
        if not roll_back(self.config, self.state, self.checkpointing, position, divergence):
            return False
        self.observer.on_rollback()
        return True

    def _warn_of_splits(self) -> None:
        missing = [name for name in self.config.eval.splits if name not in self.state.splits]
        if missing:
            self.outlets.console.warn(
                f"{without_secrets(self.config.data.path)}: has no rows in {', '.join(missing)}; nothing to evaluate "
                "there"
            )
        for text in warnings_of_labels(self.state.manifest):
            self.outlets.console.warn(f"{without_secrets(self.config.data.path)}: {text}")

    def _record_end(self, stop: Stop, position: Position) -> None:
        outlets, skipped = self.outlets, self.state.feed.skipped_rows
        outlets.live.state(stop.text)
        outlets.manager.stopping(stop.text)
        outlets.metrics.exit(*exit_of(stop))
        outlets.directory.event("stop", step=position.step, reason=stop.name.lower(), skipped_rows=skipped)
        outlets.watch.end(step=position.step)
        write_textfile(outlets)
        left_out = f" ({skipped:,} damaged rows left out)" if skipped else ""
        place = f"at step {position.step:,}{left_out}; run directory {outlets.directory.path}"
        if stop is Stop.DIVERGED:
            place = f"{place}; {divergence_advice(self.config, self.state, outlets.directory.path)}"
        outlets.console.say(f"{stop.text} {place}")
        tell_of_best(self.state.trend, outlets, ended=not stop.unfinished)
