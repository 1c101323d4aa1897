"""A few of the arrivals of `python -m tests.faults.arrivals`."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.arrivals import FATAL, MOMENTS, grow
from tests.faults.fork_server import ForkServer


def test_generations_that_come_while_a_run_trains_waits_dies_or_is_dead_change_nothing(
    server: ForkServer, tmp_path: Path
) -> None:
    problem, counts = grow(server, tmp_path, generations=5, kills=2, chance=random.Random(12))
    assert problem is None
    assert counts["kills"] >= 2
    assert {f"came while it {when}" for when in (*MOMENTS, *FATAL)} == set(counts) - {"kills"}
