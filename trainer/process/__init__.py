"""The process itself: what signals ask of it, what its threads are at, whether it hangs, and how it ends.

Nothing here imports more than the standard library, so that signals are heard before anything heavy is imported:

    def main() -> int:
        return as_program(work)  # SIGTERM at any moment: 143 and a line
"""

from __future__ import annotations

from trainer.process.program import EXIT_INTERRUPTED, as_program, is_interruption
from trainer.process.signals import STOPS, Request, Requests, SignalDesk, relayed_signals, say_at_once, stop_signals
from trainer.process.stacks import stacks_of_threads
from trainer.process.watchdog import Hang, Watchdog, WatchdogConfig

__all__ = [
    "EXIT_INTERRUPTED",
    "STOPS",
    "Hang",
    "Request",
    "Requests",
    "SignalDesk",
    "Watchdog",
    "WatchdogConfig",
    "as_program",
    "is_interruption",
    "relayed_signals",
    "say_at_once",
    "stacks_of_threads",
    "stop_signals",
]
