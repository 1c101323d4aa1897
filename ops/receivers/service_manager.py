"""systemd's notify protocol: that a run trains, is alive and stops, as datagrams to the socket NOTIFY_SOCKET names.

For example, in a service of Type=notify with WatchdogSec:

    manager = ServiceManager.from_environment()
    manager.starting("opening the data")
    manager.ready()
    manager.step(1, loss=0.52)
    manager.stopping("saving")

The protocol is that of sd_notify(3) and sd_watchdog_enabled(3); Podman and others speak it too.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

START_SECONDS, STOP_SECONDS = 3600.0, 1200.0
"""Start-up, and the last save, may take so long from one sign of life to the next, whatever the unit's timeouts."""
STATUS_SECONDS = 10.0
"""`systemctl status` shows a step that is at most so old."""


class ServiceManager:
    """Whoever started this process as a service and waits for its news; without an address nobody does.

    It never raises and never waits: a message that the socket does not take is lost, but for the two that change
    what the service counts as, READY and STOPPING, which go with the next one. Safe to call from any thread.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        watchdog_seconds: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address` is a path, or a name of Linux's abstract namespace that begins with "@".

        `watchdog_seconds`: the service is killed when it gives no sign of life for so long; None: never.
        """
        self._target = f"\0{address[1:]}" if address is not None and address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._ready = self._stopping = False
        self._owed: list[str] = []
        self._life_due = self._status_due = 0.0
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceManager:
        """That of NOTIFY_SOCKET, and of WATCHDOG_USEC where WATCHDOG_PID is this process; nobody without them."""
        address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(
            address if address.startswith(("/", "@")) else None,
            watchdog_seconds=int(microseconds) / 1e6 if watched and microseconds.isdecimal() else None,
        )

    def starting(self, what: str) -> None:
        """Start-up has come as far as `what`; it may take `START_SECONDS` from here."""
        self._send([f"STATUS=starting: {what}", _extension(START_SECONDS)])

    def ready(self) -> None:
        """Training begins: the service counts as started, and its watchdog looks from now on."""
        with self._lock:
            self._owe_ready()
            self._send(["STATUS=training"])

    def step(self, steps: int, *, loss: float) -> None:
        """A sign of life: `steps` are done, the last of them with `loss`."""
        with self._lock:
            now = self._monotonic()
            if self._target is not None and now >= self._status_due:
                self._status_due = now + STATUS_SECONDS
                self._send([f"STATUS=step {steps:,}, loss {loss:.4g}"])
            self.alive()

    def alive(self) -> None:
        """A sign of life: something that training waits for has come on. Sent when a quarter of the time has passed."""
        with self._lock:
            now = self._monotonic()
            if self._target is None or now < self._life_due:
                return
            lines = [] if self._watchdog_seconds is None else ["WATCHDOG=1"]
            if self._stopping or not self._ready:
                lines.append(_extension(STOP_SECONDS if self._stopping else START_SECONDS))
            if not lines or self._send(lines):
                self._life_due = now + min(self._watchdog_seconds or STOP_SECONDS, STOP_SECONDS) / 4

    def stopping(self, what: str) -> None:
        """The run ends, with `what` left to do; that may take `STOP_SECONDS` from here, and from `alive` on.

        It counts as started then, if it did not before: one that ends well before it is ready would have failed.
        """
        with self._lock:
            if not self._stopping:
                self._owe_ready()
                self._owed.append("STOPPING=1")
                self._stopping, self._life_due = True, 0.0
            self._send([f"STATUS=stopping: {what}", _extension(STOP_SECONDS)])

    def status(self, text: str) -> None:
        """One line for people, as `systemctl status` shows it."""
        self._send([f"STATUS={text}"])

    def _owe_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._owed.append("READY=1")

    def _send(self, lines: list[str]) -> bool:
        """Whether the message was taken, and before it those that are owed: of one message only the last one counts."""
        if self._target is None:
            return True
        with self._lock:
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.setblocking(False)
                while self._owed:
                    self._socket.sendto(self._owed[0].encode(), self._target)
                    del self._owed[0]
                message = "\n".join(" ".join(line.splitlines()) for line in lines)
                self._socket.sendto(message.encode(errors="replace"), self._target)
            except (OSError, ValueError):  # nobody there, no room, not a socket's name: never the run's concern
                return False
            return True


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"
