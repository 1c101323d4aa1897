"""What signals ask for, heard from the first moment on: to stop, to save, to show the stacks of all threads.

    TERM, INT        stop when it suits the work, saving what it has; where nothing can be saved, at once
    QUIT             the stacks of all threads, then as TERM
    XCPU             as TERM
    HUP, USR1        save, and go on; where nothing can be saved, go on
    USR2             the stacks of all threads, and go on

A second TERM, INT, QUIT or XCPU ends the process at once. Where the processor time is limited, the kernel itself
repeats XCPU every second beyond the limit: there, XCPU after XCPU is no second one. One of several ranks gets a stop
from its launcher that it may have had from a scheduler already: there, what follows within `SAME_STOP_SECONDS` is no
second one either. A process started with HUP ignored, as by nohup, goes on ignoring it.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from types import FrameType

from trainer.process.stacks import stacks_of_threads

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU)
SAVES = (signal.SIGHUP, signal.SIGUSR1)
STACKS = (signal.SIGUSR2, signal.SIGQUIT)
HEARD = tuple(dict.fromkeys(STOPS + SAVES + STACKS))

EXIT_INTERRUPTED = 143
WAKE = 0
"""A byte that is no signal's."""
POLL_SECONDS = 0.5
"""Between looks for signals that the main thread cannot take, and at the time that leaving takes."""
UNWIND_SECONDS = 15.0
"""So long the work may take to end where the first signal ends it; then the process ends without it."""
LEAVE_SECONDS = 5.0
"""The same for the second signal."""
SAME_STOP_SECONDS = 30.0
"""So long after the first, a signal that asks one of several ranks to stop means the same stop."""
SPEAK_SECONDS = 3.0
"""So long the end of the work waits for what is still being said of signals."""


class Request(Enum):
    """What a signal asks of the work in hand."""

    STOP = "stop"
    SAVE = "save"


class Requests:
    """What was asked of one piece of work; of a signal's handler, setting a flag is all that it may do."""

    def __init__(self) -> None:
        self._stop = self._save = False

    def is_set(self) -> bool:
        """Whether it shall stop."""
        return self._stop

    def set(self) -> None:
        """Asks it to stop."""
        self._stop = True

    def save_asked(self) -> bool:
        """Whether it shall save and go on, and has not begun to."""
        return self._save

    def ask_to_save(self) -> None:
        self._save = True

    def save_begins(self) -> None:
        """What is asked for from now on is another save."""
        self._save = False


Announce = Callable[[str, Request], None]
"""Takes the signal's name and what it asks for; called in a thread of its own."""


@contextmanager
def stop_signals(announce: Announce) -> Iterator[Requests]:
    """What signals ask within it, the innermost of several; the second that asks to stop raises KeyboardInterrupt.

    `announce` is called from a thread: within the handler, printing could meet a print that the signal interrupted,
    and fail. Outside the main thread nothing is ever asked.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    with _desk() as desk:
        desk.work.append((requests, announce))
        try:
            yield requests
        finally:
            try:
                desk.wait_until_said()
            finally:
                desk.work.remove((requests, announce))


@contextmanager
def relayed_signals(relay: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Hands every signal that is heard within it to `relay`, and does nothing else about it; in the main thread alone.

    For a process whose work is other processes. `relay` is called in a thread, also while the main one is stuck.
    """
    with _desk() as desk:
        desk.relays.append(relay)
        try:
            yield
        finally:
            desk.relays.remove(relay)


@contextmanager
def _desk() -> Iterator[SignalDesk]:
    """The process's desk, or one for as long as this lasts."""
    if SignalDesk.current is not None:
        yield SignalDesk.current
        return
    desk = SignalDesk()
    try:
        desk.open()
        yield desk
    finally:
        if SignalDesk.current is desk:
            desk.close()


class SignalDesk:
    """Where this process's signals arrive, one for each process; opened and closed in the main thread.

    Python runs a handler between two instructions of the main thread, which never comes if that sleeps in the kernel,
    in a read of a dead disk for example. So a thread listens as well: to the bytes that the C handlers write, and for
    signals that the kernel holds for the main thread alone. It shows stacks, says what is asked, and sees to it that a
    program (`of_program`) that is told to leave does so.
    """

    current: SignalDesk | None = None

    def __init__(self, *, of_program: bool = False, same_stop_seconds: float = 0.0) -> None:
        """`same_stop_seconds`: so long after the first, a further one that asks to stop is taken for the same."""
        self.work: list[tuple[Requests, Announce]] = []
        self.relays: list[Callable[[signal.Signals], None]] = []
        """Where there is one, the last gets what is heard, and nothing else is done."""
        self._of_program = of_program
        self._same_stop_seconds = same_stop_seconds
        self._first_handled = self._first_heard = float("inf")
        """When the first that asks to stop reached the main thread, and the listener."""
        self._raised = self._ending = False
        self._stops_heard = 0
        self._leave_at, self._leave_for = float("inf"), ""
        self._redirected: list[int] = []
        self._closed, self._caught_up = False, threading.Event()
        self._speaking: list[threading.Thread] = []
        self._before: dict[int, object] = {}
        self._pipe = (-1, -1)
        self._listener: threading.Thread | None = None
        self._opening, self._early = True, list[int]()

    @property
    def interrupted(self) -> bool:
        """Whether a signal has ended the work by KeyboardInterrupt."""
        return self._raised

    def open(self) -> None:
        """Takes over from whoever heard the signals so far; those that come meanwhile wait until it has."""
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        heard = [number for number in HEARD if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        SignalDesk.current = self
        for number in heard:
            self._before[number] = signal.signal(number, self._handle)
        self._listener = threading.Thread(target=self._listen, args=(tuple(heard),), name="signals", daemon=True)
        self._listener.start()
        self._opening = False
        for number in self._early:
            self._handle(number, None)

    def close(self) -> None:
        """Gives back to whoever heard them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        signal.set_wakeup_fd(self._wakeup_before)
        SignalDesk.current = None
        self._closed = True
        self._wake()
        if self._listener is not None:
            self._listener.join()
        for descriptor in self._pipe:
            os.close(descriptor)

    def end(self) -> None:
        """From here on the process is at its end, and no signal changes how it ends."""
        self._ending = True
        self.wait_until_said()
        for number in self._before:  # Python's own end gives handlers back to the system, whose answer is to kill
            signal.signal(number, signal.SIG_IGN)

    def wait_until_said(self) -> None:
        """Waits until all signals so far are heard, and what is said of them is said, unless nobody takes it."""
        if self._listener is None:
            return
        end = time.monotonic() + SPEAK_SECONDS
        self._caught_up.clear()
        self._wake()
        self._caught_up.wait(SPEAK_SECONDS)
        for thread in list(self._speaking):
            thread.join(max(end - time.monotonic(), 0.0))
        self._speaking = [thread for thread in self._speaking if thread.is_alive()]

    def _handle(self, number: int, _: FrameType | None) -> None:
        """In the main thread, between two of its instructions."""
        if self._opening:
            self._early.append(number)
            return
        if self._ending or self.relays:
            return
        requests = self.work[-1][0] if self.work else None
        if number in SAVES and requests is not None:
            requests.ask_to_save()
        elif number in STOPS and not self._is_the_same(self._first_handled):
            self._first_handled = min(self._first_handled, time.monotonic())
            if requests is not None and not requests.is_set():
                requests.set()
            elif not (self._raised or (requests is not None and _repeats_itself(number))):
                self._raised = True
                raise KeyboardInterrupt

    def _listen(self, heard: tuple[signal.Signals, ...]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # here; `sigtimedwait` wants that
        while not self._closed:
            if select.select([self._pipe[0]], [], [], POLL_SECONDS)[0]:
                for number in os.read(self._pipe[0], 256):
                    if number == WAKE:
                        self._caught_up.set()
                    elif number in self._redirected:
                        self._redirected.remove(number)  # heard when it was redirected
                    elif number in heard:
                        self._hear(signal.Signals(number))
            if hasattr(signal, "sigtimedwait"):
                self._redirect(heard)
            if time.monotonic() > self._leave_at and self._of_program and not self._ending:
                self._leave()

    def _wake(self) -> None:
        # full of signals, which wake it as well; a pipe that takes no byte otherwise costs a wait, and no run its end
        with suppress(OSError):
            os.write(self._pipe[1], bytes([WAKE]))

    def _redirect(self, heard: tuple[signal.Signals, ...]) -> None:
        """Hears signals that the kernel holds for the main thread while that cannot take them; it gets them later."""
        main = threading.main_thread().ident
        while (found := signal.sigtimedwait(heard, 0)) is not None:
            self._redirected.append(found.si_signo)
            assert main is not None
            signal.pthread_kill(main, found.si_signo)
            self._hear(signal.Signals(found.si_signo))

    def _hear(self, number: signal.Signals) -> None:
        if self._ending:
            return
        if self.relays:
            self.relays[-1](number)
            return
        requests, announce = self.work[-1] if self.work else (None, None)
        if number in STACKS:
            self._say(_show_stacks, number.name)
        if number in SAVES and announce is not None:
            self._say(announce, number.name, Request.SAVE)
        if number in STOPS and not self._is_the_same(self._first_heard):
            self._first_heard = min(self._first_heard, time.monotonic())
            self._stops_heard += 1
            if self._stops_heard == 1 and announce is not None:
                self._say(announce, number.name, Request.STOP)
            elif requests is None or not _repeats_itself(number):
                seconds = UNWIND_SECONDS if self._stops_heard == 1 else LEAVE_SECONDS
                self._leave_at = min(self._leave_at, time.monotonic() + seconds)
                self._leave_for = number.name

    def _is_the_same(self, first: float) -> bool:
        """Whether one that asks to stop now means the stop that was asked for at `first`."""
        return 0.0 <= time.monotonic() - first < self._same_stop_seconds

    def _say(self, function: Callable[..., None], *arguments: object) -> None:
        """In a thread of its own, as nobody may read what is said."""
        thread = threading.Thread(target=function, args=arguments, name="signals-said", daemon=True)
        self._speaking.append(thread)
        thread.start()

    def _leave(self) -> None:
        line = f"alphastream: {self._leave_for}: left without waiting for work that does not end; run it again\n"
        say_at_once(line)
        os._exit(EXIT_INTERRUPTED)


def say_at_once(line: str) -> None:
    """A line on standard error if that takes one now; a terminal's cursor, which a progress bar hides, is shown."""
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, (("\x1b[?25h" if os.isatty(2) else "") + line).encode())


def _show_stacks(name: str) -> None:
    """On standard error, in one piece."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{name}: the stacks of all threads\n{stacks_of_threads()}\n")
        sys.stderr.flush()


def _repeats_itself(number: int) -> bool:
    """Whether it is the kernel that sends this signal over and over."""
    return number == signal.SIGXCPU and resource.getrlimit(resource.RLIMIT_CPU)[0] != resource.RLIM_INFINITY
