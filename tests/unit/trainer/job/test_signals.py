"""The first signal asks to stop, the second stops; printing is left to a thread."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from trainer.job.signals import StopRequest, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_and_is_announced_from_a_thread(number: signal.Signals) -> None:
    heard: list[tuple[str, threading.Thread]] = []
    before = signal.getsignal(number)
    with stop_signals(lambda name: heard.append((name, threading.current_thread()))) as request:
        assert not request.is_set()
        os.kill(os.getpid(), number)
        assert request.is_set()
    [(name, thread)] = heard  # the thread has ended with the context
    assert name == number.name
    assert thread is not threading.main_thread()
    assert signal.getsignal(number) is before


def test_the_second_stops_at_once() -> None:
    heard: list[str] = []
    with stop_signals(heard.append):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert heard == ["SIGTERM"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_nothing_is_said() -> None:
    heard: list[str] = []
    with stop_signals(heard.append):
        pass
    assert heard == []


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def elsewhere() -> None:
        with stop_signals(found.append) as request:
            found.append((request.is_set(), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, True)]


def test_a_request_stays() -> None:
    request = StopRequest()
    request.set()
    request.set()
    assert request.is_set()
