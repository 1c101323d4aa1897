"""Which steps are measured."""

from __future__ import annotations

from stepsize.policies.cadence import Cadence


def test_measuring_takes_the_first_interval_whole_and_then_the_first_of_each():
    cadence = Cadence(interval=5, count=2, start=3)
    assert [step for step in range(20) if cadence.wants(step)] == [3, 4, 5, 6, 7, 8, 9, 13, 14, 18, 19]
