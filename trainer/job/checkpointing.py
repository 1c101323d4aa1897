"""The checkpoints of a run in progress: begun when due, written beside training, announced when they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trainer.job.observer import Outlets
from trainer.job.save_thread import SaveOutcome, SaveThread
from trainer.job.training_state import TrainingState
from trainer.loop import Position
from trainer.records import CheckpointFile, HostMemory, write_checkpoint


@contextmanager
def open_checkpointing(state: TrainingState, outlets: Outlets, *, keep: int) -> Iterator[Checkpointing]:
    """The checkpoints of a run; a save that is under way at an error is finished and told of before the error goes on.

    Only a KeyboardInterrupt, which shall end the process at once, abandons it; as `SaveThread` has it.
    """
    with SaveThread() as thread:
        checkpointing = Checkpointing(state=state, outlets=outlets, keep=keep, thread=thread)
        try:
            yield checkpointing
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
    """

    state: TrainingState
    outlets: Outlets
    keep: int
    thread: SaveThread
    memory: HostMemory = field(default_factory=HostMemory)
    _told_of_memory: bool = field(default=False, init=False)

    def save(self, position: Position, *, final: bool) -> None:
        """Saves; the last of all within the call, and what it cannot write it raises.

        A failure before, OSError, is counted and told, and the run is saved again when that is due.
        """
        self.drain()
        with self._live_saving():
            try:
                files = None if final else self._snapshot(position)
                if files is None:
                    self._save_now(position)
                else:
                    write = partial(self._write, position.step, files)
                    self.thread.begin(position.step, write)
            except OSError as error:
                self._count_failure(position.step, error, final=final)

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self.thread.busy

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
        if files is None and not self._told_of_memory:
            self._told_of_memory = True
            self.outlets.warn(
                "memory does not suffice for a copy of weights and optimizer: training waits while checkpoints are "
                "written",
                step=position.step,
            )
        return files

    def _write(self, step: int, files: list[CheckpointFile]) -> Path | None:
        """In the thread: the checkpoint's path, or None if there is none because of its weights."""
        if not self.state.learner.saved_finite(files):
            return None
        return write_checkpoint(
            self.outlets.directory.path,
            step,
            self.thread.until_abandoned(files),
            keep=self.keep,
            before_publishing=self._make_records_durable,
        )

    def _make_records_durable(self) -> None:
        self.thread.refuse_abandoned()
        self.outlets.directory.sync()

    def _save_now(self, position: Position) -> None:
        if not self.state.learner.finite():
            self._tell_of_weights(position.step)
            return
        directory = self.outlets.directory
        path = self.state.save(
            directory.path, position, directory.lengths(), keep=self.keep, before_publishing=directory.sync
        )
        self._tell_of_success(position.step, path, None)

    def _tell(self, outcome: SaveOutcome | None) -> None:
        if outcome is None:
            return
        if isinstance(outcome.error, OSError):
            self._count_failure(outcome.step, outcome.error, final=False)
        elif outcome.error is not None:
            raise outcome.error
        elif outcome.path is None:
            self._tell_of_weights(outcome.step)
        else:
            self._tell_of_success(outcome.step, outcome.path, outcome.unix_time)

    def _tell_of_success(self, step: int, path: Path, unix_time: float | None) -> None:
        self.outlets.metrics.checkpoint(ok=True, unix_time=unix_time)
        self.outlets.directory.event("checkpoint", step=step, checkpoint=path.name)

    def _tell_of_weights(self, step: int) -> None:
        self.outlets.warn(f"no checkpoint at step {step:,}: weights are not finite, the one before stays", step=step)

    def _count_failure(self, step: int, error: OSError, *, final: bool) -> None:
        self.outlets.metrics.checkpoint(ok=False)
        if final:
            raise error
        self.outlets.warn(f"no checkpoint at step {step:,} ({error}); training goes on", step=step)

    @contextmanager
    def _live_saving(self) -> Iterator[None]:
        """Within it the live page says that training waits for a save."""
        self.outlets.live.state("saving")
        try:
            yield
        finally:
            self.outlets.live.state("training")
