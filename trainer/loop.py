"""The training loop: take a pair, choose the rate, step, and evaluate, record and save when due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ops.step_clock import QueueWait, StepClock, StepTiming
from pipeline.device import DevicePair
from pipeline.errors import InterruptedWaitError, NoRowsYetError
from stepsize.estimate import Estimate
from stepsize.policies import Policy
from stepsize.worker import StepSizeWorker
from trainer.divergence import Divergence, DivergenceConfig, DivergenceWatch, Recovery, WithheldCause
from trainer.learner import HostCopy
from trainer.step import TrainStep
from trainer.timetable import Position, Stop, Timetable

__all__ = ["Host", "Loop", "Observer", "Pairs", "Position", "Stop", "Timetable"]


class Host(Protocol):
    """What the loop asks of whoever runs it."""

    def agree(self, position: Position, *, scheduled: bool) -> None:
        """Asked between steps, before anything is decided: of several ranks all come to the same answers until the
        next time, and to rank 0's `training_seconds`. `scheduled`: the timetable has a save here.
        """
        ...

    def evaluate(self, position: Position) -> Mapping[str, float] | None:
        """Evaluates and returns the loss of every split; None if a signal cut it short, so that it will be repeated."""

    def save(self, position: Position, *, final: bool) -> None:
        """Begins a checkpoint of this moment; writes the `final` one, for whose failure nothing makes up later."""

    def save_due(self, position: Position, *, scheduled: bool) -> bool:
        """Whether to save now, which the timetable has or has not `scheduled`; asked between steps.

        Another answer than the timetable's is for a save that failed, to be made again in time.
        """
        ...

    def poll_save(self) -> None:
        """Tells of a save that has ended since; called once a step, and waits for nothing."""

    def drain_save(self) -> None:
        """Waits for a save that is under way, and tells of it."""

    def stopping(self) -> bool:
        """Whether a signal asked the run to stop."""
        ...

    def await_rows(self, position: Position) -> bool:
        """Waits for a followed log to grow, or for something else to do; False once it has waited long enough.

        The wait is the clock's phase `data_wait`, begun anew while it goes on: one that is open for long is a hang.
        """
        ...

    def broken_weights(self) -> int | None:
        """The step of a save that found weights that are not finite, since the last rollback; None if none did."""
        ...

    def roll_back(self, position: Position, divergence: Divergence) -> bool:
        """Puts all of the run but the stream's position back to the last good moment, at a lower rate.

        `position` is changed to it. False, and nothing is changed, if the run has gone back as often as it may.
        """
        ...

    def save_asked(self) -> bool:
        """Whether a signal asked for a checkpoint of now; once for however many asked."""
        ...


class Observer(Protocol):
    """What the loop tells the outside; it never decides anything."""

    def on_step(self, record: Mapping[str, Any], timing: StepTiming, training_seconds: float) -> None: ...
    def on_pause(self, timing: StepTiming) -> None: ...
    def on_estimate(self, estimate: Estimate) -> None: ...
    def on_message(self, message: str, *, step: int) -> None: ...


class Pairs(Protocol):
    """Where the loop takes its pairs from: a feed, or what stands in for one."""

    @property
    def last_wait(self) -> QueueWait | None:
        """The device's for the copy of the last pair; None if that was complete."""
        ...

    def __next__(self) -> DevicePair: ...


@dataclass(frozen=True, kw_only=True)
class _UnreadStep:
    """A step whose time and loss may still be on their way from the device."""

    record: dict[str, Any]
    timing: Callable[[], StepTiming]
    """Waits until the device is through with the step; the numbers are there then."""
    numbers: HostCopy
    """The loss, and what was checked."""
    cause: Callable[[Sequence[float]], WithheldCause | None]
    """Why the step was withheld, of what was checked."""


@dataclass(kw_only=True)
class Loop:
    """The steps of a run, and what comes between them."""

    feed: Pairs
    train_step: TrainStep
    policy: Policy
    scheduled_rate: Callable[[int], float]
    """The rate that the schedule gives a step, for the policy to follow or not."""
    timetable: Timetable
    host: Host
    observer: Observer
    position: Position = field(default_factory=Position)
    watch: DivergenceWatch = field(default_factory=lambda: DivergenceWatch(DivergenceConfig()))
    """Told of every step, in their order."""
    recovery: Recovery = field(default_factory=Recovery)
    """What rollbacks have left of every rate."""
    _unread: deque[_UnreadStep] = field(default_factory=deque, init=False)
    _idle: bool = field(default=False, init=False)
    """No new rows came for so long that the host wants to wait no more."""

    @property
    def clock(self) -> StepClock:
        return self.train_step.clock

    @property
    def worker(self) -> StepSizeWorker:
        return self.train_step.worker

    def ended(self) -> Stop | None:
        """How the run has ended, if it has and its last evaluation is made; None if there is work left."""
        stop = self._stop_reason()
        return stop if stop in (Stop.BUDGET, Stop.TARGET) and self._evaluated_here() else None

    def run(self) -> Stop:
        """Trains until the budget, the target, divergence or a signal, and leaves a checkpoint behind."""
        self.observer.on_pause(self.clock.finish_outside())  # building and loading are not training
        while True:
            while (stop := self._agreed_stop()) is None:
                self.host.poll_save()
                if self.timetable.evaluation_due(self.position):
                    self._evaluate()
                elif self._save_due():
                    self._save()
                else:
                    self._train()
            stop = self._last_look(stop)
            if stop is not Stop.DIVERGED or not self._roll_back():
                return self._finish(stop)

    def _train(self) -> None:
        try:
            with self.clock.phase("data_wait"):
                pair = next(self.feed)
        except InterruptedWaitError:  # by what the loop asks for before its next step
            self.clock.abandon_step()
        except NoRowsYetError:
            self._await_rows()
        else:
            self.clock.handed_over(self.feed.last_wait)
            self._step(pair)

    def _await_rows(self) -> None:
        """Saves and waits, in no step's time nor the budget's, until rows come or the host has something else to do."""
        self.clock.abandon_step()
        self._settle()
        if self._stop_reason() is not None:
            return
        if self.position.step != self.position.last_checkpoint_step and not self.watch.suspicious:
            self._save()
        self._idle = not self.host.await_rows(self.position)
        self.observer.on_pause(self.clock.finish_outside())

    def _step(self, pair: DevicePair) -> None:
        step = self.position.step
        scheduled = self.scheduled_rate(step)
        rate = self.recovery.rate_factor * self.policy.learning_rate(step, scheduled)
        measure = pair.fresh and self.policy.wants(step)
        plan = self.policy.horizon(step + 1)
        trained = self.train_step(pair, step=step, learning_rate=rate, measure=measure, plan=plan)
        numbers = HostCopy(trained.loss, trained.checked.sizes)
        with self.clock.phase("alpha"):  # an estimate that is due is waited for
            estimates = self.worker.poll(step=step)
        self._take_estimates(estimates, step=step)
        self.position.step += 1
        self.position.rows += pair.rows
        record = {
            "step": step,
            "epoch": pair.epoch,
            "start": pair.start,
            "rows": pair.rows,
            "learning_rate": rate,
            "scheduled_rate": scheduled,
        }
        unread = _UnreadStep(
            record=record, timing=self.clock.end_step(), numbers=numbers, cause=trained.checked.cause_of
        )
        self._unread.append(unread)
        self._read_steps(keep=self.clock.in_flight_steps)

    def _read_steps(self, *, keep: int) -> None:
        """Reads the steps in flight but the latest `keep`; waits for the device if it isn't through with them."""
        while len(self._unread) > keep:
            unread = self._unread.popleft()
            timing = unread.timing()
            arrived, sizes = unread.numbers.wait()
            loss, cause = arrived.item(), unread.cause(sizes.tolist())
            self.watch.add(unread.record["step"], loss, withheld=cause is not None)
            self.position.training_seconds += timing.seconds
            record = {**unread.record, "seconds": timing.seconds, "phases": timing.phases, "loss": loss}
            if cause is not None:
                record["withheld"] = {"cause": cause.kind, "what": cause.what}
            self.observer.on_step(record, timing, self.position.training_seconds)

    def _take_estimates(self, estimates: list[Estimate], *, step: int) -> None:
        for estimate in estimates:
            self.observer.on_estimate(estimate)
            held = estimate.step < self.recovery.held_until and self.policy.sets_rate
            message = None if held else self.policy.observe(estimate)
            if message:
                self.observer.on_message(message, step=step)

    def _agree(self) -> None:
        scheduled = self.timetable.checkpoint_due(self.position) and not self.watch.suspicious
        self.host.agree(self.position, scheduled=scheduled)

    def _agreed_stop(self) -> Stop | None:
        self._agree()
        return self._stop_reason()

    def _stop_reason(self) -> Stop | None:
        if self._divergence() is not None:
            return Stop.DIVERGED
        stop = self.timetable.end(self.position)
        if stop is None and self.host.stopping():
            stop = Stop.INTERRUPTED
        return stop or (Stop.IDLE if self._idle else None)

    def _divergence(self) -> Divergence | None:
        """What shows that the run has diverged, of all that is known by now."""
        loss, step = self.position.validation_loss, self.position.last_evaluation_step
        if loss is not None and not math.isfinite(loss):
            return Divergence(reason="the validation loss was not finite", since=step)
        if (saved := self.host.broken_weights()) is not None:
            return Divergence(reason="weights were not finite", since=saved)
        return self.watch.verdict(final=self.timetable.used_up(self.position))

    def _save_due(self) -> bool:
        scheduled = self.timetable.checkpoint_due(self.position) and not self.watch.suspicious
        return self.host.save_due(self.position, scheduled=scheduled) or self.host.save_asked()

    def _evaluated_here(self) -> bool:
        return self.position.last_evaluation_step == self.position.step

    def _evaluate(self) -> None:
        self._settle()
        with self.clock.phase("evaluation"):
            losses = self.host.evaluate(self.position)
        self.observer.on_pause(self.clock.finish_outside())
        if losses is not None:
            self.position.last_evaluation_step = self.position.step
            self.position.last_evaluation_seconds = self.position.training_seconds
            self.position.validation_loss = losses.get("validation")

    def _save(self, *, final: bool = False) -> None:
        self._settle()
        self.position.last_checkpoint_step = self.position.step
        self.position.last_checkpoint_seconds = self.position.training_seconds
        with self.clock.phase("checkpoint"):
            self.host.save(self.position, final=final)
        self.observer.on_pause(self.clock.finish_outside())

    def _settle(self) -> None:
        """Waits for what is in flight, which is charged to training, so that what comes then begins on an idle device
        and a checkpoint holds everything up to its step: what is told of it is told, and estimates that are due later
        are part of it.
        """
        last = self.position.step - 1
        with self.clock.phase("alpha"):
            estimates = self.worker.drain(step=last)
        self._read_steps(keep=0)
        self._take_estimates(estimates, step=last)
        self._agree()

    def _last_look(self, stop: Stop) -> Stop:
        """`stop`, once what is in flight is known, and the model evaluated if the budget is used up."""
        self._settle()
        if stop is not Stop.DIVERGED and self._divergence() is not None:
            return Stop.DIVERGED
        if stop in (Stop.BUDGET, Stop.IDLE):
            if not self._evaluated_here():
                self._evaluate()
            return (self._stop_reason() or stop) if self._evaluated_here() else Stop.INTERRUPTED
        return stop

    def _roll_back(self) -> bool:
        """Whether the run goes on from its last good moment; the time it takes is that of a checkpoint."""
        divergence = self._divergence()
        assert divergence is not None
        for estimate in self.worker.flush(step=self.position.step - 1):
            self.observer.on_estimate(estimate)
        with self.clock.phase("checkpoint"):
            gone_back = self.host.roll_back(self.position, divergence)
        self.observer.on_pause(self.clock.finish_outside())
        return gone_back

    def _finish(self, stop: Stop) -> Stop:
        if stop is Stop.DIVERGED:
            with self.clock.phase("checkpoint"):
                self.host.drain_save()
            self.observer.on_pause(self.clock.finish_outside())
        else:
            self._save(final=True)
        self.report_undelivered()
        return stop

    def report_undelivered(self) -> None:
        """Tells the observer of estimates due after the last step; a continued run hands them to its policy too."""
        for estimate in self.worker.flush(step=self.position.step - 1):
            self.observer.on_estimate(estimate)
