"""The checkpoints of a run in progress: begun when due, written beside training, announced when they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic as now
from time import sleep as pause

from pipeline.errors import StorageError, cause_of
from pipeline.shards import free_bytes, why_not_synced
from trainer.job.observer import Outlets
from trainer.job.save_thread import SaveOutcome, SaveThread
from trainer.job.saving import Backoff, SaveAttempt, forecast_of, lacks_space, size_text
from trainer.job.training_state import TrainingState
from trainer.loop import Position
from trainer.ranks import RanksLostError
from trainer.records import CheckpointConfig, CheckpointFile, HostMemory, delete_set_aside, write_checkpoint

RETRY_SECONDS, MOST_RETRY_SECONDS = 30.0, 600.0
"""After a failed save training goes on for so long before the next; twice as long after each further failure, up to the
most."""


@contextmanager
def open_checkpointing(
    state: TrainingState, outlets: Outlets, config: CheckpointConfig, *, goes_on_from: int = 0
) -> Iterator[Checkpointing]:
    """The checkpoints of a run; a save that is under way at an error is finished and told of before the error goes on.

    A KeyboardInterrupt, which shall end the process at once, abandons it, and so does, some seconds later, the loss of
    a rank, which it may wait for; as `SaveThread` has it.
    """
    with SaveThread() as thread:
        checkpointing = Checkpointing(
            state=state, outlets=outlets, config=config, thread=thread, goes_on_from=goes_on_from
        )
        try:
            yield checkpointing
        except RanksLostError:
            raise
        except Exception as error:
            try:
                checkpointing.drain()
            except Exception as another:
                error.add_note(f"a checkpoint failed as well: {type(another).__name__}: {another}")
            raise


@dataclass(kw_only=True)
class Checkpointing:
    """Saves a run, one checkpoint at a time.

    A save in the middle copies what it holds, which is all that training waits for, and is written by a thread. One
    that falls due while another is being written waits for it; that time is the save's too, and none is left out. The
    last save of a run is written at once, without a copy.
    A checkpoint counts, and is told of, once it has its name, and that is when its records are on disk too.
    One that could not be written is made again after a pause, whatever is scheduled.
    """

    state: TrainingState
    outlets: Outlets
    config: CheckpointConfig
    thread: SaveThread
    memory: HostMemory = field(default_factory=HostMemory)
    broken_weights: int | None = None
    """The step of the latest save that found weights that are not finite; whoever mends that sets it back."""
    goes_on_from: int = 0
    """Where this process began, or last went back to: what was set aside is kept until a later step is saved."""
    retries: Backoff = field(
        default_factory=lambda: Backoff(first_seconds=RETRY_SECONDS, most_seconds=MOST_RETRY_SECONDS)
    )
    _attempt: SaveAttempt | None = field(default=None, init=False)
    """The one whose outcome is still to be told; while the thread is at it, the thread's."""
    _needed_bytes: int = field(default=0, init=False)
    """Of a checkpoint, as of the latest save: a failure may be told of in an evaluation, which swaps the weights."""
    _told_of_memory: bool = field(default=False, init=False)
    _first_step: int | None = field(default=None, init=False)
    _forecast: bool = field(default=False, init=False)

    def due(self, position: Position, *, scheduled: bool) -> bool:
        """Whether to save now; asked between steps. After the first step tells what the disk will have to hold."""
        if self._first_step is None:
            self._first_step = position.step
        elif not self._forecast and position.step > self._first_step:
            self._forecast = True
            self._tell_of_disk(position)
        return self.retries.due(scheduled=scheduled or self._best_here(position))

    def save(self, position: Position, *, final: bool) -> None:
        """Saves; the last of all within the call.

        A failure before the last, OSError, is counted and told, and the run is saved again when `due` says so.

        Raises: StorageError if the last cannot be written for as long as the configuration has patience.
        """
        self.drain()
        self._needed_bytes = self.state.saved_bytes()
        with self._live_saving():
            if final:
                self._save_last(position)
                return
            self.retries.began()
            try:
                files = self._snapshot(position)
                if files is None:
                    self._save_now(position)
                else:
                    write = partial(self._write, position.step, files, self._new_attempt(), self._best_step())
                    self.thread.begin(position.step, write)
            except OSError as error:
                self._tell_of_failure(position.step, error)

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self.thread.busy

    def save_rollback(self, position: Position) -> None:
        """Saves what a rollback has made of the run in the place of what it went back to, within the call.

        A failure is told as in the middle of a run: until a later save is made, it would go back again.
        """
        self._needed_bytes = self.state.saved_bytes()
        with self._live_saving():
            try:
                self._save_now(position)
            except OSError as error:
                self._tell_of_failure(position.step, error)

    def poll(self) -> None:
        """Tells what came of a save that has ended; at once if none has.

        Raises: what ended the save, if it is no OSError.
        """
        self._tell(self.thread.take())

    def drain(self) -> None:
        """As `poll`, once a save that is under way has ended."""
        with self._live_saving():
            self._tell(self.thread.take(wait=True))

    def _snapshot(self, position: Position) -> list[CheckpointFile] | None:
        files = self.memory.snapshot(*self.state.content(position, self.outlets.directory.lengths()))
        if not self._everywhere(files is not None):
            files = None
        if files is None and not self._told_of_memory:
            self._told_of_memory = True
            self.outlets.warn(
                "memory does not suffice for a copy of weights and optimizer: training waits while checkpoints are "
                "written",
                step=position.step,
            )
        return files

    def _best_step(self) -> int | None:
        """Of the best evaluation so far, if a checkpoint of it is to be kept."""
        best = self.state.trend.best
        return best[0] if self.config.keep_best and best is not None else None

    def _best_here(self, position: Position) -> bool:
        """Whether these weights were just found the best so far, in a later pass over the data than the first: from
        there on a run may get worse, and its best weights would be gone before the next save."""
        feed, here = self.state.feed, position.step
        if feed.log is not None or feed.position.epoch == 0 or self.state.watch.suspicious:
            return False
        return position.last_evaluation_step == here == self._best_step() and position.last_checkpoint_step != here

    def _everywhere(self, here: bool) -> bool:
        """Whether something is so on all ranks that save together."""
        return all(self.state.ranks.for_saves().gather(here))

    def _new_attempt(self) -> SaveAttempt:
        self._attempt = SaveAttempt(
            run=self.outlets.directory.path, needed_bytes=self._needed_bytes, group=self.state.ranks.for_saves()
        )
        return self._attempt

    def _write(
        self, step: int, files: list[CheckpointFile], attempt: SaveAttempt, best_step: int | None
    ) -> Path | None:
        """In the thread: the checkpoint's path, or None if there is none because of its weights."""
        if not self._everywhere(self.state.learner.saved_finite(files)):
            return None

        def write() -> Path:
            return write_checkpoint(
                self.outlets.directory.path,
                step,
                self.thread.until_abandoned(files),
                keep=self.config.keep,
                best_step=best_step,
                before_publishing=self._make_records_durable,
                not_pruned=attempt.not_pruned,
                shares=self.state.shares(lambda: files),
            )

        return attempt.write(write)

    def _make_records_durable(self) -> None:
        self.thread.refuse_abandoned()
        self.outlets.directory.sync()

    def _save_now(self, position: Position) -> None:
        if not self._everywhere(self.state.learner.finite()):
            self._tell_of_weights(position.step)
            return
        directory, attempt = self.outlets.directory, self._new_attempt()

        def write() -> Path:
            return self.state.save(
                directory.path,
                position,
                directory.lengths(),
                keep=self.config.keep,
                best_step=self._best_step(),
                before_publishing=directory.sync,
                not_pruned=attempt.not_pruned,
            )

        self._tell_of_success(position.step, attempt.write(write), None)

    def _save_last(self, position: Position) -> None:
        """Nothing makes up for it later, so it is tried again until patience ends."""
        patience, given_up = Backoff(first_seconds=1.0, most_seconds=30.0), now() + self.config.final_retry_seconds
        told = False
        while True:
            try:
                self._save_now(position)
                return
            except OSError as error:
                self._tell_notes(position.step)
                self.outlets.metrics.checkpoint(ok=False)
                left = self.state.ranks.for_saves().gather(given_up - now())[0]
                if left <= 0:
                    raise StorageError(self._lost(position.step, error)) from error
                if not told:
                    told = True
                    self.outlets.warn(
                        f"the last checkpoint, of step {position.step:,}, cannot be written ({error}); "
                        f"{self._remedy(error)}; trying again for {left:,.0f} s, a second signal leaves without it",
                        step=position.step,
                    )
            pause(min(patience.failed(), left))

    def _lost(self, step: int, error: OSError) -> str:
        where = self.outlets.directory.path
        return (
            f"{where}: the last checkpoint, of step {step:,}, could not be written ({cause_of(error)}); "
            f"{self._remedy(error)}, then run the same command again, which goes on from the newest whole checkpoint"
        )

    def _remedy(self, error: OSError) -> str:
        """What people can do about a save that failed."""
        if not lacks_space(error):
            return "see to the disk"
        needed, place = self._needed_bytes, self.outlets.directory.path / "checkpoints"
        try:
            free = free_bytes(place)
        except OSError:
            return f"free {size_text(needed)} on the disk of {place}"
        if free >= needed:  # which a disk may say whose quota is used up
            return f"free {size_text(needed)} on the disk of {place}, or raise your quota or its number of files"
        return (
            f"free {size_text(needed - free)} on the disk of {place}: a checkpoint takes {size_text(needed)}, and "
            f"{size_text(free)} are free"
        )

    def _tell(self, outcome: SaveOutcome | None) -> None:
        if outcome is None:
            return
        if isinstance(outcome.error, OSError):
            self._tell_of_failure(outcome.step, outcome.error)
        elif outcome.error is not None:
            raise outcome.error
        elif outcome.path is None:
            self._tell_of_weights(outcome.step)
        else:
            self._tell_of_success(outcome.step, outcome.path, outcome.unix_time)

    def _tell_of_success(self, step: int, path: Path, unix_time: float | None) -> None:
        assert self._attempt is not None
        seconds, size = self._attempt.seconds, self._attempt.bytes
        self.retries.succeeded()
        self.outlets.metrics.checkpoint(ok=True, unix_time=unix_time, seconds=seconds, size_bytes=size)
        self.outlets.metrics.set("last_checkpoint_step", step)
        self.outlets.directory.event("checkpoint", step=step, checkpoint=path.name)
        if step > self.goes_on_from and self.state.ranks.first:
            delete_set_aside(self.outlets.directory.path)
        self._tell_notes(step)

    def _tell_notes(self, step: int) -> None:
        attempt, self._attempt = self._attempt, None
        for note in attempt.notes if attempt else ():
            self.outlets.warn(note, step=step)

    def _tell_of_weights(self, step: int) -> None:
        self.broken_weights = step
        self.outlets.warn(f"no checkpoint at step {step:,}: weights are not finite, the one before stays", step=step)

    def _tell_of_failure(self, step: int, error: OSError) -> None:
        self._tell_notes(step)
        self.outlets.metrics.checkpoint(ok=False)
        seconds = self.retries.failed()
        self.outlets.warn(
            f"no checkpoint at step {step:,} ({error}); {self._remedy(error)}; training goes on, and saves again in "
            f"{seconds:,.0f} s",
            step=step,
        )

    def _tell_of_disk(self, position: Position) -> None:
        size, total, run = self.state.saved_bytes(), self.state.total_steps, self.outlets.directory.path
        with suppress(OSError):  # which a save will tell of
            if (cause := why_not_synced(run)) is not None:
                self.outlets.warn(
                    f"{run}: its file system cannot put files on the disk when asked ({cause}): a crash of the "
                    "machine, other than one of the run, may cost its newest checkpoints",
                    step=position.step,
                )
        self.outlets.metrics.expect_checkpoint(size)
        try:
            forecast = forecast_of(
                run,
                checkpoint_bytes=size,
                keep=self.config.keep + self.config.keep_best,
                full_steps=self.outlets.directory.full_steps,
                steps_to_come=None if total is None else total - position.step,
            )
        except OSError as error:
            self.outlets.warn(f"the free space of the run's disk is not known ({cause_of(error)})", step=position.step)
            return
        if forecast.warning is not None:
            self.outlets.warn(forecast.warning, step=position.step)

    @contextmanager
    def _live_saving(self) -> Iterator[None]:
        """Within it the live page says that training waits for a save."""
        self.outlets.live.state("saving")
        try:
            yield
        finally:
            self.outlets.live.state("training")
