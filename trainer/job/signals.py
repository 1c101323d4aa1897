"""SIGTERM and SIGINT as a request to stop that a loop looks at when it suits it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType


class StopRequest:
    """Whether a signal asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def is_set(self) -> bool:
        return self._asked

    def set(self) -> None:
        """Asks; of a signal's handler, which may interrupt itself, that is all it may do (`Event` would lock up)."""
        self._asked = True


@contextmanager
def stop_signals(announce: Callable[[str], None]) -> Iterator[StopRequest]:
    """A request that SIGTERM or SIGINT sets; the second of them stops at once. Outside the main thread: never set.

    `announce` is told the signal's name, from a thread: within the handler, printing could meet a print that the
    signal interrupted, and fail.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names: SimpleQueue[str | None] = SimpleQueue()

    def handle(number: int, _: FrameType | None) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.set()
        names.put(signal.Signals(number).name)

    def speak() -> None:
        name = names.get()
        if name is not None:
            announce(name)

    speaker = threading.Thread(target=speak, name="stop-signals", daemon=True)
    speaker.start()
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        names.put(None)
        speaker.join()
