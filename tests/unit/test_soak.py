"""What the soak calls flat: a saw that comes back is, a slow leak beneath it is not."""

from __future__ import annotations

import pytest

from tests.soak.flatness import flatness

SECONDS = [10.0 * sample for sample in range(720)]
SAW = [100.0 + 40.0 * (sample % 13 == 0) for sample in range(720)]


def test_what_comes_and_goes_is_flat() -> None:
    judged = flatness("memory", SECONDS, SAW, allowed=0.0)
    assert (judged.first, judged.last, judged.per_hour) == (100.0, 100.0, 0.0)
    assert judged.flat


def test_a_slow_leak_beneath_it_is_found() -> None:
    """Six an hour over two hours."""
    leaking = [value + seconds / 600 for value, seconds in zip(SAW, SECONDS, strict=True)]
    judged = flatness("memory", SECONDS, leaking, allowed=5.0, allowed_share=0.01)
    assert judged.per_hour == pytest.approx(6.0, rel=0.01)
    assert not judged.flat


def test_the_warm_up_does_not_count() -> None:
    warming = [50.0 if seconds < 600 else value for value, seconds in zip(SAW, SECONDS, strict=True)]
    assert flatness("memory", SECONDS, warming, allowed=0.0).flat


@pytest.mark.parametrize(("threads", "flat"), [(1, False), (0, True)])
def test_one_thread_more_is_one_too_many(threads: int, flat: bool) -> None:
    values = [20.0 + threads * (seconds > 5000) for seconds in SECONDS]
    assert flatness("threads", SECONDS, values, allowed=0.0).flat is flat


def test_what_may_grow_by_a_share_of_where_it_began() -> None:
    values = [1000.0 + 30.0 * (seconds > 5000) for seconds in SECONDS]
    assert flatness("memory", SECONDS, values, allowed=0.0, allowed_share=0.03).flat
    assert not flatness("memory", SECONDS, values, allowed=0.0, allowed_share=0.02).flat


def test_a_run_too_short_is_not_judged() -> None:
    with pytest.raises(ValueError, match="too few"):
        flatness("memory", SECONDS[:9], SAW[:9], allowed=0.0)
