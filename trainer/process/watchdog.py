"""The watchdog: says when a run has been at one thing for longer than that may take, and when it goes on."""

from __future__ import annotations

import faulthandler
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

from ops.step_clock import OpenPhase

Action = Literal["report", "exit"]

LONGEST_LOOK_SECONDS = 1.0
"""Between two looks, unless a budget is so short that it wants more of them."""
LOOKS_A_BUDGET = 10
DEAF_FACTOR = 2.0
"""If no Python thread runs for so many times the longest budget, the stacks are written without Python's help."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """The [watchdog] section: how long one thing may take before the run is said to hang; 0 seconds: for ever."""

    action: Action = "report"
    """report: say so and keep waiting; exit: save what is in memory and end with code 74, to be started again."""
    data_wait_seconds: float = 600.0
    """Waiting for the rows of a step."""
    step_seconds: float = 300.0
    """Any other part of a step, or what lies between two steps."""
    evaluation_seconds: float = 600.0
    """One batch of an evaluation, with the wait for its rows."""
    checkpoint_seconds: float = 1800.0
    """Writing a checkpoint, also beside training."""
    first_step_seconds: float = 3600.0
    """Resuming, waiting for the first rows, and each part of the first step, with all that is compiled."""
    grace_seconds: float = 300.0
    """How long saving may take with action = "exit"; then the process ends without it."""

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"watchdog.action is {self.action!r}; choose one of {', '.join(get_args(Action))}")
        for name in (*self._budgets(), "grace_seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"watchdog.{name} is {value}; give seconds, or 0 for no limit")

    @staticmethod
    def _budgets() -> tuple[str, ...]:
        return (
            "data_wait_seconds",
            "step_seconds",
            "evaluation_seconds",
            "checkpoint_seconds",
            "first_step_seconds",
        )

    def key_of(self, phase: str, *, steps: int) -> str:
        """The setting that limits `phase` after so many steps of this process."""
        if phase in ("evaluation", "checkpoint"):
            return f"{phase}_seconds"
        if steps == 0:
            return "first_step_seconds"
        return "data_wait_seconds" if phase == "data_wait" else "step_seconds"

    def limits(self) -> list[float]:
        """The budgets that are set, in seconds."""
        return [value for name in self._budgets() if (value := getattr(self, name)) > 0]


@dataclass(frozen=True, kw_only=True)
class Hang:
    """One thing that takes longer than its budget."""

    phase: str
    seconds: float
    """For how long it had been going on when it was noticed, or ended."""
    key: str
    """The setting that limits it."""
    limit: float
    beside: bool = False
    """Whether it goes on beside training, which doesn't wait for it yet."""

    def __str__(self) -> str:
        where = "a checkpoint beside training" if self.beside else self.phase
        return f"{where} has taken {self.seconds:.0f} s, more than watchdog.{self.key} = {self.limit:g}"


class Watchdog:
    """Looks at what the loop's thread is at, from a thread of its own while it is a context.

    `on_hang` is told once that something hangs, `on_recovery` once that it goes on, with what had hung. Where the
    action is to exit, `ask_to_stop` is called at the first hang, and `leave` if the process is still there
    `grace_seconds` later. All are called in the watchdog's thread and must not wait for anything that can hang.

    Time in which this process did not run, stopped or frozen as a whole, is no hang: it counts what it sees itself.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        *,
        open_phase: Callable[[], OpenPhase],
        on_hang: Callable[[Hang], None],
        on_recovery: Callable[[Hang], None],
        leave: Callable[[Hang], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.saving_seconds: Callable[[], float] = lambda: 0.0
        """For how long a checkpoint has been written beside training; 0: none is."""
        self.gave_up = False
        """Whether it asked the run to stop."""
        self._ask_to_stop: Callable[[], None] | None = None
        self._open_phase, self._monotonic = open_phase, monotonic
        self._on_hang, self._on_recovery, self._leave = on_hang, on_recovery, leave
        limits = config.limits()
        self.look_seconds = min([LONGEST_LOOK_SECONDS, *(limit / LOOKS_A_BUDGET for limit in limits)])
        self._beats, self._seen, self._watched = 0, (-1, -1), 0.0
        self._looked_at = monotonic()
        self._hang: Hang | None = None
        self._grace_left = config.grace_seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Something within the open phase went on; of the loop's thread alone."""
        self._beats += 1

    def stop_by(self, ask_to_stop: Callable[[], None]) -> None:
        """From now on there is something to save: `ask_to_stop` is what asks for it."""
        self._ask_to_stop = ask_to_stop
        if self.gave_up:
            ask_to_stop()

    def look(self) -> None:
        """One look at the run."""
        now = self._monotonic()
        elapsed = min(now - self._looked_at, 2 * self.look_seconds + 1.0)
        self._looked_at = now
        hang = self._found(elapsed)
        before, self._hang = self._hang, hang
        if before is not None and (hang is None or (hang.phase, hang.beside) != (before.phase, before.beside)):
            self._on_recovery(before)
            before = None
        if hang is not None and before is None:
            self._on_hang(hang)
            if self.config.action == "exit" and not self.gave_up:
                self.gave_up = True
                if self._ask_to_stop is not None:
                    self._ask_to_stop()
        elif self.gave_up and self.config.grace_seconds:
            self._grace_left -= elapsed
            if self._grace_left <= 0:
                self._leave(hang or Hang(phase="checkpoint", seconds=0.0, key="grace_seconds", limit=0.0))

    def _found(self, elapsed: float) -> Hang | None:
        phase = self._open_phase()
        seen = (phase.since, self._beats)
        self._watched = self._watched + elapsed if seen == self._seen else 0.0
        self._seen = seen
        key = self.config.key_of(phase.within or phase.name, steps=phase.steps)
        limit = getattr(self.config, key)
        if 0 < limit <= self._watched:
            return Hang(phase=phase.name, seconds=self._watched, key=key, limit=limit)
        saving, limit = self.saving_seconds(), self.config.checkpoint_seconds
        if 0 < limit <= saving:
            return Hang(phase="checkpoint", seconds=saving, key="checkpoint_seconds", limit=limit, beside=True)
        return None

    def _work(self) -> None:
        deaf_seconds = DEAF_FACTOR * max(self.config.limits()) + self.config.grace_seconds
        armed_at = -math.inf
        while not self._ended.wait(self.look_seconds):
            if self._monotonic() > armed_at + deaf_seconds / 4:
                armed_at = self._monotonic()
                faulthandler.dump_traceback_later(deaf_seconds, file=2)  # pyright: ignore[reportArgumentType]
            self.look()
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Watchdog:
        if self.config.limits():
            self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
