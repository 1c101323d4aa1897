"""The frame of a program: signals from its first moment on, and an end that nothing can hold up."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from trainer.process.signals import EXIT_INTERRUPTED, SAME_STOP_SECONDS, SignalDesk, say_at_once

MAY_BE_STUCK = ("alphastream-", "checkpoint")
"""Names of threads that read and write begin so."""


def as_program(work: Callable[[], int], *, one_of_several: bool = False) -> int:
    """The exit code of `work`, which hears the process's signals; 143 and a line if one ends it and it doesn't say so.

    To `one_of_several` ranks a stop that comes twice within some seconds is one. Does not return if a signal ended the
    work, or if a thread is left in a read or a write that does not end: the interpreter's own end could wait for that,
    or break on it.
    """
    desk = SignalDesk(of_program=True, same_stop_seconds=SAME_STOP_SECONDS if one_of_several else 0.0)
    try:
        desk.open()
        code = work()
        desk.end()
    except BaseException as error:
        if not (desk.interrupted and is_interruption(error)):
            raise
        desk.wait_until_said()  # the signal's own stacks, for one
        desk.end()
        say_at_once("alphastream: interrupted; run the same command again\n")
        code = EXIT_INTERRUPTED
    stuck = any(thread.name.startswith(MAY_BE_STUCK) for thread in threading.enumerate())
    if desk.interrupted and not stuck:
        # Where the interruption passed through code that an extension runs, as some do when they are imported, Python
        # would end by SIGINT, not with `code`.
        with suppress(Exception):
            atexit._run_exitfuncs()
    if desk.interrupted or stuck:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def is_interruption(error: BaseException) -> bool:
    """Whether `error` is a KeyboardInterrupt, or what became of one on its way.

    Python 3.11 makes a RuntimeError of one that meets a class being made; who catches that may call it bad input.
    """
    seen, left = set[int](), [error]
    while left:
        one = left.pop()
        if isinstance(one, KeyboardInterrupt):
            return True
        if id(one) not in seen:
            seen.add(id(one))
            left += [other for other in (one.__cause__, one.__context__) if other is not None]
    return False
