"""`python -m stepsize.suite`."""

from __future__ import annotations

import sys

from stepsize.suite.command import suite_command

if __name__ == "__main__":
    sys.exit(suite_command())
