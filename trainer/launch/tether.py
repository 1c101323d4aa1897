"""Runs a command that the kernel kills with whoever started it: `python -I -S tether.py PARENT COMMAND...` (Linux).

A program of its own, which becomes the command: the request outlives `exec`, and made between `fork` and `exec` of a
process with threads it could deadlock. Elsewhere than on Linux the command runs as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def become_command() -> None:
    """Does not return."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(128 + signal.SIGKILL)
    if os.environ.get("WATCHDOG_PID") == sys.argv[1]:  # systemd's, of whoever gives signs of life: that is rank 0
        os.environ["WATCHDOG_PID"] = str(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    become_command()
