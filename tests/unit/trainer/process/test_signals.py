"""The first signal asks, the second stops at once; printing is left to threads; a main thread asleep gets its own."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.process import Request, Requests, relayed_signals, signals, stop_signals
from trainer.process.signals import HEARD, SAVES, STOPS, SignalDesk

Heard = list[tuple[str, Request, threading.Thread]]


@contextmanager
def listening() -> Iterator[tuple[Requests, Heard]]:
    heard: Heard = []
    with stop_signals(lambda name, request: heard.append((name, request, threading.current_thread()))) as requests:
        yield requests, heard


@pytest.mark.parametrize("number", STOPS)
def test_the_first_asks_and_is_announced_from_a_thread(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as (requests, heard):
        assert not requests.is_set()
        os.kill(os.getpid(), number)
        assert requests.is_set()
    [(name, request, thread)] = heard  # the thread has ended with the context
    assert (name, request) == (number.name, Request.STOP)
    assert thread is not threading.main_thread()
    assert signal.getsignal(number) is before


def test_one_that_comes_while_the_desk_opens_is_heard_once_it_is_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between two handlers, before the thread that listens begins: nothing that it asks for is lost."""
    install, desk = signal.signal, SignalDesk()

    def install_and_send(number: int, handler: Any) -> Any:
        before = install(number, handler)
        if number == signal.SIGQUIT:
            os.kill(os.getpid(), number)
        return before

    monkeypatch.setattr(signal, "signal", install_and_send)
    try:
        with pytest.raises(KeyboardInterrupt):
            desk.open()
    finally:
        monkeypatch.undo()
        desk.wait_until_said()
        desk.close()
    assert "SIGQUIT: the stacks of all threads" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.parametrize("second", STOPS)
def test_the_second_stops_at_once(second: signal.Signals) -> None:
    with listening() as (_, heard):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)
    assert [name for name, *_ in heard] == ["SIGTERM"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_kernel_s_repeated_xcpu_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (60, resource.RLIM_INFINITY))
    with listening() as (requests, heard):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert requests.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [name for name, *_ in heard] == ["SIGXCPU"]


def test_one_of_several_ranks_takes_a_stop_that_reaches_it_twice_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a scheduler and from its launcher; a later one leaves at once, as ever."""
    now = 1000.0
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now))
    desk = SignalDesk(same_stop_seconds=30.0)
    desk.open()
    try:
        with listening() as (requests, heard):
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            assert requests.is_set()
            desk.wait_until_said()
            now += 31.0
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        desk.close()
    assert [name for name, *_ in heard] == ["SIGTERM"]


@pytest.mark.parametrize("world", ["1", "3"])
def test_a_program_knows_by_its_environment_that_it_is_one_of_several(world: str) -> None:
    code = """
import os, signal, sys
from trainer import cli
from trainer.process import stop_signals
def work(_):
    with stop_signals(lambda *_: None):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    return 7
cli._main = work
sys.exit(cli.main())
"""
    environment = {**os.environ, "WORLD_SIZE": world}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert ended.returncode == (143 if world == "1" else 7)


@pytest.mark.parametrize("number", HEARD)
def test_relayed_signals_are_handed_on_and_nothing_else_happens(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    relayed = list[signal.Signals]()
    with listening() as (requests, heard):
        with relayed_signals(relayed.append):
            for count in (1, 2, 3):
                os.kill(os.getpid(), number)
                while len(relayed) < count:
                    threading.Event().wait(0.001)
        assert not requests.is_set()
        assert not requests.save_asked()
        assert relayed == [number] * 3
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.is_set(), "heard here again"
    assert [name for name, *_ in heard] == ["SIGTERM"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", SAVES)
def test_a_save_is_asked_for_once_and_nothing_stops(number: signal.Signals) -> None:
    with listening() as (requests, heard):
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert requests.save_asked()
        assert not requests.is_set()
        requests.save_begins()
        assert not requests.save_asked()
        os.kill(os.getpid(), number)  # of a moment that this save does not have
        assert requests.save_asked()
    assert {(name, request) for name, request, _ in heard} == {(number.name, Request.SAVE)}


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGQUIT])
def test_stacks_of_all_threads_are_shown(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    waiting, going = threading.Event(), threading.Event()

    def a_function_to_be_seen() -> None:
        going.set()
        waiting.wait()

    thread = threading.Thread(target=a_function_to_be_seen, name="somebody")
    thread.start()
    going.wait()
    with listening() as (requests, _):
        os.kill(os.getpid(), number)
        assert requests.is_set() == (number == signal.SIGQUIT)
    waiting.set()
    thread.join()
    shown = capsys.readouterr().err
    assert shown.startswith(f"{number.name}: the stacks of all threads\nthread MainThread:\n")
    assert "thread somebody:\n" in shown
    assert "in a_function_to_be_seen\n" in shown


ASLEEP = """
import os, signal
from queue import SimpleQueue
from trainer.process import stop_signals
from trainer.process.signals import HEARD

heard = SimpleQueue()
with stop_signals(lambda name, _: heard.put(name)) as requests:
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard.get(timeout=60) == "SIGTERM"
    assert not requests.is_set()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    assert requests.is_set()  # it got its own when it could
assert heard.empty()
print("heard once")
"""


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="a thread cannot take another's signals here")
def test_a_signal_that_the_main_thread_cannot_take_is_heard_all_the_same() -> None:
    """Asleep in the kernel, it is like one that blocks its signals: they stay with it, and reach no other thread.

    In a process of its own, as threads that the tests may run beside would take the signal.
    """
    done = subprocess.run([sys.executable, "-c", ASLEEP], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard once\n"), done.stderr


ENDING = """
import os, sys
from trainer.process import as_program
from trainer.process.signals import HEARD

class Last:
    def __del__(self, kill=os.kill, getpid=os.getpid, heard=HEARD, write=os.write):
        for number in heard:
            kill(getpid(), number)
        write(1, b"outlived all")

last = Last()
sys.exit(as_program(lambda: 3))
"""


def test_no_signal_changes_how_a_program_ends_that_has_ended() -> None:
    """Python gives handlers back before it takes its modules apart, which takes long with many."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (3, "outlived all"), done.stderr


CONVERTED = """
import os, signal, sys, time
from contextlib import suppress
from trainer.process import as_program

class Slow:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

def in_a_class():  # a RuntimeError in Python 3.11, from 3.12 on what it is
    class Owner:
        slow = Slow()

def in_an_import():
    try:
        Slow().__set_name__(None, "")
    except KeyboardInterrupt:
        raise ImportError("half imported") from None

def of_its_own():
    raise ImportError("nothing of that name")

def of_its_own_and_a_signal_later():
    try:
        of_its_own()
    finally:
        with suppress(KeyboardInterrupt):
            Slow().__set_name__(None, "")

sys.exit(as_program(globals()[sys.argv[1]]))
"""


@pytest.mark.parametrize("where", ["in_a_class", "in_an_import"])
def test_an_interruption_that_turns_into_another_error_on_its_way_is_one_all_the_same(where: str) -> None:
    command = [sys.executable, "-c", CONVERTED, where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (143, "alphastream: interrupted; run the same command again\n")


@pytest.mark.parametrize("where", ["of_its_own", "of_its_own_and_a_signal_later"])
def test_an_error_that_no_signal_caused_is_shown_as_it_is(where: str) -> None:
    command = [sys.executable, "-c", CONVERTED, where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "ImportError: nothing of that name" in done.stderr


def test_a_pipe_that_takes_nothing_costs_a_wait_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SPEAK_SECONDS", 0.01)
    write = os.write

    def refusing(file: int, data: bytes) -> int:
        if data == bytes([signals.WAKE]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    with listening() as (requests, _):
        monkeypatch.setattr(os, "write", refusing)
        os.kill(os.getpid(), signal.SIGTERM)
    assert requests.is_set()


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as (requests, heard):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not requests.save_asked()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert requests.save_asked()
        assert [name for name, *_ in heard] == ["SIGUSR1"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_innermost_of_several_is_asked() -> None:
    with listening() as (outer, _):
        with listening() as (inner, _):
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.is_set()
            assert not outer.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.is_set()


def test_everything_is_given_back() -> None:
    before = {number: signal.getsignal(number) for number in HEARD}
    threads = threading.active_count()
    with listening() as (_, heard):
        assert SignalDesk.current is not None
    assert heard == []
    assert SignalDesk.current is None
    assert {number: signal.getsignal(number) for number in HEARD} == before
    assert threading.active_count() == threads


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def elsewhere() -> None:
        with listening() as (requests, _):
            found.append((requests.is_set(), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, True)]
