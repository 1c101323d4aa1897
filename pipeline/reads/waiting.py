"""Waiting for a read in a way that a signal can end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pipeline.errors import InterruptedWaitError

POLL_SECONDS = 0.05
"""Between looks at whether a wait is still wanted."""

T = TypeVar("T")


def never() -> bool:
    """The `interrupted` of a wait that nothing ends early."""
    return False


def awaited(future: Future[T], interrupted: Callable[[], bool]) -> T:
    """The result of `future`, which goes on if the wait for it is not wanted any more.

    Raises: InterruptedWaitError once `interrupted` while it is waited for; what `future` raises.
    """
    if not future.done():
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        while not ended.wait(POLL_SECONDS):
            if interrupted():
                raise InterruptedWaitError
    return future.result()
