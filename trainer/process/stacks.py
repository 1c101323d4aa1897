"""What every thread of the process is at, as text."""

from __future__ import annotations

import sys
import threading
import traceback


def stacks_of_threads() -> str:
    """The stack of every Python thread by the thread's name, the main thread's first; innermost calls last."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    main = threading.main_thread().ident
    parts = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        thread = threads.get(ident)
        name = "unknown to Python" if thread is None else f"{thread.name}{' (daemon)' if thread.daemon else ''}"
        parts.append(f"thread {name}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
