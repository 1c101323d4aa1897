"""Reads that fail for a moment, tried again with growing pauses for a bounded time, and counted."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import cause_of

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOLINK", "ENODEV", "ENXIO", "EPIPE"),
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET"),
    )
    if hasattr(errno, name)
)
"""What disks, file servers and networks answer while something is down that may come up again, and the system while it
has too few files or too little memory left to read."""
TRANSIENT_TEXT = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING"
    r"|HTTP status (5\d\d|429)|timed? ?out|connection (was )?(reset|refused|closed)|broken pipe",
    re.IGNORECASE,
)
"""The same where a library has only words for it."""

T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether an error, or the one it came from, is of a kind that may pass by itself."""
    if isinstance(error.__cause__, OSError):
        return is_transient(error.__cause__)
    if not isinstance(error, OSError):
        return False
    return error.errno in TRANSIENT if error.errno is not None else bool(TRANSIENT_TEXT.search(str(error)))


class ReadRetries:
    """Tries reads again, for all readers of a run; safe to use from any thread."""

    def __init__(
        self,
        seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`seconds` from its first failure on a read is tried again; 0: never. `chance` gives numbers in [0, 1)."""
        self.seconds = seconds
        self.listen: Callable[[str, str], None] = lambda cause, text: None
        """Is told each time, in the reader's thread: `error` or `damage`, and which read failed why; and `uncached`,
        and why, of a read past a cache that cannot be written."""
        self._monotonic, self._chance = monotonic, chance

    def run(
        self,
        name: str,
        action: Callable[[], T],
        *,
        pause: Callable[[float], object],
        final: tuple[type[OSError], ...] = (),
    ) -> T:
        """What `action`, a read of `name`, returns, tried again while what it raises is transient and time is left.

        The k-th pause is 2ᵏ⁻¹ · `FIRST_PAUSE_SECONDS`, at most `LONGEST_PAUSE_SECONDS`, times a number in [1/2, 1)
        drawn anew, so that readers that failed together don't come back together. `pause` may raise, and ends it; so
        do errors of the kinds `final`, tried again by somebody else already.
        Raises: what `action` raised last.
        """
        began, longest = None, FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except OSError as error:
                now = self._monotonic()
                began = now if began is None else began
                left = began + self.seconds - now
                if left <= 0 or isinstance(error, final) or not is_transient(error):
                    raise
                self.listen("error", f"{name}: {cause_of(error)}; it is tried again for {self.seconds:g} s")
            pause(min(longest * (1 + self._chance()) / 2, left))
            longest = min(2 * longest, LONGEST_PAUSE_SECONDS)
