"""What a hang of a run does: everybody who looks is told, and the stacks of all threads are kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from trainer.job.observer import Outlets
from trainer.loop import Stop
from trainer.process import Hang, Watchdog, WatchdogConfig, say_at_once, stacks_of_threads

STACKS = "stacks.txt"
"""File of the run directory that has the stacks of every hang."""
STACKS_BYTES = 4 << 20
"""A file that has grown longer is begun anew."""


class HangReport:
    """Tells of hangs: metrics, live page and readiness at once; log, event log and RUN/stacks.txt from a thread.

    Both of the latter may lie on what hangs, and nobody may read the log.
    """

    def __init__(self, outlets: Outlets, mark_hung: Callable[[str | None], None]) -> None:
        self._outlets, self._mark_hung = outlets, mark_hung

    def hang(self, hang: Hang) -> None:
        text = f"{hang}"
        self._show(text)
        self._outlets.metrics.hang(hang.phase)
        stacks = stacks_of_threads()
        self._aside(self._tell_of_hang, hang, text, stacks)

    def recovery(self, hang: Hang) -> None:
        self._show(None)
        self._outlets.metrics.recovery()
        self._aside(self._tell_of_recovery, hang)

    def leave(self, hang: Hang) -> None:
        """Ends the process without a checkpoint; does not return."""
        say_at_once(
            f"alphastream: {hang}, and the run could not be saved within watchdog.grace_seconds: left without; run the "
            "same command again to continue from the newest checkpoint\n"
        )
        os._exit(Stop.HUNG.exit_code)

    def _show(self, text: str | None) -> None:
        self._outlets.live.hung(text)
        self._mark_hung(text)

    def _aside(self, tell: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=tell, args=arguments, name="watchdog-report", daemon=True).start()

    def _tell_of_hang(self, hang: Hang, text: str, stacks: str) -> None:
        path = self._outlets.directory.path / STACKS
        self._outlets.console.warn(f"the run hangs: {text}; stacks of all threads follow, and are in {path}")
        self._outlets.console.say(stacks)
        with suppress(OSError):
            _keep(path, f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n\n{stacks}\n")
        with suppress(OSError):
            self._outlets.directory.event("hang", phase=hang.phase, seconds=hang.seconds, message=text)

    def _tell_of_recovery(self, hang: Hang) -> None:
        self._outlets.console.say(f"the run goes on: {hang.phase} hung, and ended")
        with suppress(OSError):
            self._outlets.directory.event("recovery", phase=hang.phase)


def watched(config: WatchdogConfig, outlets: Outlets, mark_hung: Callable[[str | None], None]) -> Watchdog:
    """A watchdog over the run's clock, which tells all its outlets; a context."""
    report = HangReport(outlets, mark_hung)
    return Watchdog(
        config,
        open_phase=outlets.clock.open_phase,
        on_hang=report.hang,
        on_recovery=report.recovery,
        leave=report.leave,
    )


def _keep(path: Path, text: str) -> None:
    long = path.is_file() and path.stat().st_size > STACKS_BYTES
    with path.open("w" if long else "a", encoding="utf-8") as file:
        file.write(text)
