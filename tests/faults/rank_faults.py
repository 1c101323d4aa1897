"""What goes wrong in one rank, arranged in its process before it begins: at a step, in a save, with its clock."""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

from ops.step_clock import StepClock
from trainer.job import checkpointing, save_thread
from trainer.process import program
from trainer.ranks import group
from trainer.records.sharded import writing
from trainer.step import TrainStep

Act = Callable[[], None]


def _at_steps(acts: dict[int, Act]) -> None:
    """Calls each within its step, before the first exchange of that."""
    original = TrainStep.__call__

    def step(self: TrainStep, pair: Any, *, step: int, **options: Any) -> Any:
        if (act := acts.pop(step, None)) is not None:
            act()
        return original(self, pair, step=step, **options)

    TrainStep.__call__ = step


def signal_at(*, step: int, number: int) -> None:
    """This process sends itself a signal."""
    _at_steps({step: lambda: os.kill(os.getpid(), number)})


def interrupted_at(*, step: int) -> None:
    """This process is told to stop twice at once, and takes them for two stops, as it does of those far apart."""
    program.SAME_STOP_SECONDS = 0.0

    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    _at_steps({step: send})


def die_in_save(*, save: int, part: int, after: bool = False) -> None:
    """SIGKILL in the save of that number, from 1: before or after its 1st part (the folder), 2nd (rows), 3rd (name)."""
    original, calls = writing.together, 0

    def together(group: Any, act: Callable[[], Any]) -> list[Any]:
        nonlocal calls
        calls += 1
        fatal = calls == 3 * (save - 1) + part
        if fatal and not after:
            os.kill(os.getpid(), signal.SIGKILL)

        def acted() -> Any:
            value = act()
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        return original(group, acted)

    writing.together = together


def stop_in_save(*, save: int) -> None:
    """This process stops itself, until it is continued, before it writes its rows in the save of that number."""
    original, calls = writing.together, 0

    def together(group: Any, act: Callable[[], Any]) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls == 3 * (save - 1) + 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(group, act)

    writing.together = together


def no_room(*, from_step: int, to_step: int | None = None) -> None:
    """No file may grow beyond a few bytes between two steps: the system refuses it with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    _at_steps({from_step: refuse} | ({} if to_step is None else {to_step: allow}))


def retry_soon(*, seconds: float = 0.0) -> None:
    """After a failed save the next comes so much later, not half a minute."""
    checkpointing.RETRY_SECONDS = seconds


def impatient(*, seconds: float = 0.2) -> None:
    """A rank that has lost another one waits so long for a word of it, and for a save that cannot end any more."""
    group.WORD_SECONDS = save_thread.ABANDON_SECONDS = seconds


def skewed_clock(*, rate: float, offset: float = 0.0) -> None:
    """Every clock of this process runs at another rate, and from another time."""
    for name in ("time", "monotonic", "perf_counter"):
        for suffix, per_second in (("", 1), ("_ns", 10**9)):
            setattr(time, name + suffix, _skewed(getattr(time, name + suffix), rate, offset * per_second))
    defaults = StepClock.__init__.__kwdefaults__
    assert defaults is not None
    defaults["nanosecond_time"] = time.perf_counter_ns


def _skewed(original: Callable[[], Any], rate: float, offset: float) -> Callable[[], Any]:
    began = original()
    return lambda: type(began)(began + offset + rate * (original() - began))


def infinite_input(*, starts: list[int], epoch: int = 0) -> None:
    """An input of the first row that this rank has of the batches that begin at these rows is infinite."""
    original = TrainStep.__call__

    def step(self: TrainStep, pair: Any, **options: Any) -> Any:
        if pair.epoch != epoch or pair.start not in starts or not len(pair.b2.dense):
            return original(self, pair, **options)
        before = pair.b2.dense[0, 0].item()
        pair.b2.dense[0, 0] = math.inf
        try:
            return original(self, pair, **options)
        finally:
            pair.b2.dense[0, 0] = before

    TrainStep.__call__ = step
