"""The long-running training job: puts a run together, continues it where it stopped, and keeps it observable."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.server import Server
from ops.step_clock import StepClock
from pipeline.addresses import without_secrets
from pipeline.shards import Manifest
from trainer.config import Config, config_errors
from trainer.console import Console
from trainer.job.assembly import Parts
from trainer.job.observer import RunObserver
from trainer.job.run_directory import RunDirectory
from trainer.job.signals import stop_signals
from trainer.learner import scheduled_rate
from trainer.loop import Loop, Position, Stop
from trainer.records import Checkpoint, load_latest
from trainer.step import TrainStep


def train(config: Config, run: str | Path, *, console: Console) -> Stop:
    """Trains `config` in the run directory `run`, continuing from its newest whole checkpoint.

    Raises: pipeline.errors.InputError for what the user gave (exit code 2), OSError where reading or writing failed
    (74); the run's event log has it too, unless the run directory could not be opened.
    """
    config = config.resolved()
    with ExitStack() as stack:
        parts = Parts(config, Manifest.load(config.data.path), stack)
        directory = stack.enter_context(RunDirectory(run, config))
        try:
            return Job(config, parts, directory, console, stack).run()
        except Exception as error:
            with suppress(OSError):  # a full disk, which the error tells of already
                directory.event("failed", message=f"{type(error).__name__}: {error}")
            raise


class Job:
    """One process's work on one run: resume, loop, evaluations, checkpoints, and what is told to the outside."""

    def __init__(
        self, config: Config, parts: Parts, directory: RunDirectory, console: Console, stack: ExitStack
    ) -> None:
        self.config, self.parts, self.directory, self.console = config, parts, directory, console
        self.clock, self.metrics = StepClock(), Metrics()
        self.live = LiveStatus(
            self.clock,
            run=str(directory.path),
            total_steps=parts.total_steps,
            budget_seconds=config.budget.seconds,
        )
        self.server = self._serve(stack)
        self.position = self._resume()
        self.stopping = stack.enter_context(stop_signals(self._on_signal))
        line = stack.enter_context(
            console.progress("training", parts.total_steps, unit="steps", start=self.position.step)
        )
        self.observer = RunObserver(
            directory=directory,
            metrics=self.metrics,
            live=self.live,
            clock=self.clock,
            feed=parts.feed,
            console=console,
            line=line,
        )

    def run(self) -> Stop:
        """Trains to the end of the budget, the target, divergence or a signal."""
        config, parts = self.config, self.parts
        loop = Loop(
            feed=parts.feed,
            train_step=TrainStep(
                model=parts.model,
                optimizer=parts.optimizer,
                worker=parts.worker,
                average=parts.average,
                clock=self.clock,
            ),
            policy=parts.policy,
            worker=parts.worker,
            clock=self.clock,
            observer=self.observer,
            budget=config.budget,
            evaluation=config.eval,
            total_steps=parts.total_steps,
            checkpoint_every_steps=config.checkpoint.every_steps,
            checkpoint_every_seconds=config.checkpoint.every_seconds,
            scheduled_rate=lambda step: scheduled_rate(
                config.schedule, step=step, total_steps=parts.total_steps, peak=parts.peak
            ),
            evaluate=self._evaluate,
            save=self._save,
            stopping=self.stopping.is_set,
            position=self.position,
        )
        ended = loop.ended()
        if ended is not None:
            self.console.say(
                f"{self.directory.path}: nothing to do, {ended.text} at step {self.position.step:,} already"
            )
            return ended
        missing = [name for name in config.eval.splits if name not in parts.splits]
        if missing:
            self.console.warn(
                f"{without_secrets(config.data.path)}: has no rows in {', '.join(missing)}; nothing to evaluate there"
            )
        self.live.state("training")
        if self.server is not None:
            self.server.mark_ready()
        stop = loop.run()
        self.live.state(stop.text)
        skipped = parts.feed.skipped_rows
        self.directory.event("stop", step=self.position.step, reason=stop.name.lower(), skipped_rows=skipped)
        (self.directory.path / "metrics.prom").write_text(self.metrics.exposition(), encoding="utf-8")
        left_out = f" ({skipped:,} damaged rows left out)" if skipped else ""
        self.console.say(f"{stop.text} at step {self.position.step:,}{left_out}; run directory {self.directory.path}")
        return stop

    def _serve(self, stack: ExitStack) -> Server | None:
        """The metrics server, listening before the first step; None where it is switched off."""
        address = self.config.metrics
        if address.port < 0:
            return None
        with config_errors():
            server = Server(self.metrics, address.host, address.port, self.live.snapshot)
        stack.callback(server.close)
        server.start()
        self.console.say(f"live page {server.url}  metrics {server.url}metrics")
        return server

    def _resume(self) -> Position:
        """Continues from the newest whole checkpoint, or starts at step 0; records are cut back to it."""
        found = load_latest(self.directory.path, device=self.parts.device)
        if found is None:
            self.directory.begin(self.config, records={})
            self.directory.event("start", step=0)
            return Position()
        position = self.parts.load(found.tensors, found.state, where=self.directory.path)
        self.directory.begin(self.config, records=found.state["records"])
        self.directory.event("resume", step=position.step, checkpoint=found.path.name)
        self._warn_of_changes(found)
        self.live.resume(
            step=position.step,
            epoch=self.parts.feed.position.epoch,
            rows=position.rows,
            training_seconds=position.training_seconds,
        )
        self.console.say(f"continuing {self.directory.path} at step {position.step:,}")
        return position

    def _warn_of_changes(self, found: Checkpoint) -> None:
        """What makes this run another than it would have been without the stop."""
        for damaged in found.damaged:
            self._warn(f"{damaged}; continuing from {found.path.name}", step=found.step)
        before, now = found.state["total_steps"], self.parts.total_steps
        if before != now:
            self._warn(
                f"the budget was {before} steps and is {now}; a schedule or policy that counts on it changes with it",
                step=found.step,
            )

    def _warn(self, message: str, *, step: int) -> None:
        self.directory.event("warning", step=step, message=message)
        self.console.warn(message)

    def _save(self, final: bool) -> None:
        """Saves a checkpoint. One that fails mid-run is counted and tried again when due; the last one raises."""
        step = self.position.step
        if not self.parts.finite():
            self._warn(f"no checkpoint at step {step:,}: weights are not finite, the one before stays", step=step)
            return
        self.live.state("saving")
        try:
            path = self.parts.save(
                self.directory.path, self.position, self.directory.lengths(), keep=self.config.checkpoint.keep
            )
        except OSError as error:
            self.metrics.checkpoint(ok=False)
            if final:
                raise
            self._warn(f"no checkpoint at step {step:,} ({error}); training goes on", step=step)
        else:
            self.metrics.checkpoint(ok=True)
            self.directory.event("checkpoint", step=step, checkpoint=path.name)
        self.live.state("training")

    def _evaluate(self) -> dict[str, float] | None:
        """The loss of every split; None, and nothing recorded, where a signal came in between."""
        self.live.state("evaluating")
        found = []
        for split in self.parts.splits:
            began = time.monotonic()
            evaluation = self.parts.evaluate(
                self.config.data, self.parts.manifest, self.config.eval, split, stopping=self.stopping.is_set
            )
            if self.stopping.is_set():
                return None
            found.append((evaluation, time.monotonic() - began))
        for evaluation, seconds in found:
            self.observer.on_evaluation(
                evaluation,
                step=self.position.step,
                seconds=seconds,
                training_seconds=self.position.training_seconds,
            )
        self.live.state("training")
        return {evaluation.split: evaluation.loss for evaluation, _ in found}

    def _on_signal(self, name: str) -> None:
        self.console.say(f"{name}: stopping after this step, then saving; again to stop at once")
