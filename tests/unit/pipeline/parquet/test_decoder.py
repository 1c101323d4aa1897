"""The page decoder neither crashes nor reads past its pages, whatever they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
EXAMPLES = "120"
"""Of each property; by hand the default, or any more."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bounds_check", ["0", "1"])
def test_any_pages_give_an_error_or_the_right_rows(tmp_path: Path, bounds_check: str) -> None:
    """In a process of its own: machine code with and without checks of every index, walls around its memory."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": bounds_check}
    if bounds_check == "1":  # numba's cache does not tell the two kinds of machine code apart
        environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"}  # compiled for this once
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.decoder_fuzz", EXAMPLES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
