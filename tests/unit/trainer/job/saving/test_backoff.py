"""Pauses after failures: doubled each time up to the most, and never for a reason that is over."""

from __future__ import annotations

from trainer.job.saving import Backoff


def test_pauses_double_up_to_the_most_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(first_seconds=30.0, most_seconds=600.0, now=lambda: 0.0)
    assert [backoff.failed() for _ in range(7)] == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    backoff.succeeded()
    assert backoff.failed() == 30.0


def test_a_week_of_failures_stays_a_number() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=600.0, now=lambda: 0.0)
    assert {backoff.failed() for _ in range(5000)} >= {1.0, 600.0}


def test_after_a_failure_the_pause_decides_and_not_the_schedule() -> None:
    time = 100.0
    backoff = Backoff(first_seconds=30.0, most_seconds=600.0, now=lambda: time)
    assert backoff.due(scheduled=True)
    assert not backoff.due(scheduled=False)
    backoff.failed()
    time = 129.0
    assert not backoff.due(scheduled=True)
    time = 130.0
    assert backoff.due(scheduled=False)
    backoff.began()
    assert not backoff.due(scheduled=False), "one is under way"
    assert backoff.due(scheduled=True)
    backoff.failed()
    time = 189.0
    assert not backoff.due(scheduled=True), "the second pause is longer"
    backoff.succeeded()
    assert not backoff.due(scheduled=False)
