"""`python -m stepsize.suite`."""

from __future__ import annotations

import sys

from stepsize.suite.command import main

if __name__ == "__main__":
    sys.exit(main())
