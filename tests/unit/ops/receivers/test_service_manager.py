"""The notify protocol, spoken to a socket as systemd's: what is said when, and that a deaf socket changes nothing."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ops.receivers import ServiceManager
from ops.receivers.service_manager import START_SECONDS, STATUS_SECONDS, STOP_SECONDS

START, STOP = (f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}" for seconds in (START_SECONDS, STOP_SECONDS))


class Clock:
    """A time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The messages since the last call."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@alphastream-{uuid.uuid4().hex}"
    listener = Listener(address)
    with closing(listener.socket):
        yield listener


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(listener: Listener, clock: Clock) -> ServiceManager:
    return ServiceManager(listener.address, watchdog_seconds=40.0, monotonic=clock)


def test_a_run_from_start_to_end(manager: ServiceManager, listener: Listener) -> None:
    manager.starting("loading torch")
    manager.ready()
    manager.step(1, loss=0.6931)
    manager.stopping("SIGTERM")
    manager.stopping("saving")
    assert listener.heard() == [
        f"STATUS=starting: loading torch\n{START}",
        "READY=1",
        "STATUS=training",
        "STATUS=step 1, loss 0.6931",
        "WATCHDOG=1",
        "STOPPING=1",
        f"STATUS=stopping: SIGTERM\n{STOP}",
        f"STATUS=stopping: saving\n{STOP}",
    ]


def test_steps_feed_the_watchdog_once_in_a_quarter_of_its_time(
    manager: ServiceManager, listener: Listener, clock: Clock
) -> None:
    manager.ready()
    fed = []
    for step in range(100):
        manager.step(step, loss=0.5)
        if "WATCHDOG=1" in listener.heard():
            fed.append(step)
        clock.now += 1.0
    assert fed == list(range(0, 100, 10))


def test_without_steps_nobody_feeds_the_watchdog(manager: ServiceManager, listener: Listener, clock: Clock) -> None:
    manager.ready()
    manager.step(1, loss=0.5)
    listener.heard()
    clock.now += 100.0
    manager.status("anything")
    assert listener.heard() == ["STATUS=anything"]


def test_a_status_is_sent_now_and_then_without_a_watchdog_too(listener: Listener, clock: Clock) -> None:
    manager = ServiceManager(listener.address, monotonic=clock)
    manager.ready()
    listener.heard()
    for step in range(21):
        manager.step(step, loss=0.25)
        clock.now += STATUS_SECONDS / 10
    steps = [f"STATUS=step {step}, loss 0.25" for step in (0, 10, 20)]
    assert listener.heard() == steps


@pytest.mark.parametrize(("begin", "extends"), [("starting", [START]), ("ready", []), ("stopping", [STOP])])
def test_a_sign_of_life_moves_the_timeouts_of_start_and_stop_alone(
    manager: ServiceManager, listener: Listener, begin: str, extends: list[str]
) -> None:
    begun: Callable[..., None] = getattr(manager, begin)
    begun(*([] if begin == "ready" else ["something"]))
    listener.heard()
    manager.alive()
    [message] = listener.heard()
    assert message.split("\n") == ["WATCHDOG=1", *extends]


def test_a_run_that_ends_before_it_is_ready_has_not_failed_to_start(
    manager: ServiceManager, listener: Listener
) -> None:
    manager.starting("opening the data")
    manager.stopping("nothing to do")
    manager.ready()  # too late to count
    assert [line for line in listener.heard() if not line.startswith("STATUS")] == ["READY=1", "STOPPING=1"]


def test_a_full_socket_loses_signs_of_life_and_neither_ready_nor_stopping(
    manager: ServiceManager, listener: Listener, clock: Clock
) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as stuffing:
        stuffing.setblocking(False)
        target = manager._target
        assert target is not None
        with suppress(BlockingIOError):
            while True:
                stuffing.sendto(b"x", target)
    manager.ready()
    manager.step(1, loss=0.5)
    assert set(listener.heard()) == {"x"}
    clock.now += 0.1
    manager.step(2, loss=0.5)
    assert listener.heard() == ["READY=1", "WATCHDOG=1"]


@pytest.mark.parametrize("address", ["/nowhere/notify", "/" + 200 * "x", "@" + 200 * "x"])
def test_a_socket_that_is_not_there_is_nobodys_trouble(address: str) -> None:
    manager = ServiceManager(address, watchdog_seconds=1.0)
    manager.starting("opening")
    manager.ready()
    manager.step(1, loss=float("nan"))
    manager.stopping("saving")


def test_a_message_stays_one_line_an_entry(manager: ServiceManager, listener: Listener) -> None:
    manager.status("two\nlines\rand \udcff")
    assert listener.heard() == ["STATUS=two lines and ?"]


@pytest.mark.parametrize(
    ("variables", "fed"),
    [
        ({"WATCHDOG_USEC": "40000000"}, True),
        ({"WATCHDOG_USEC": "40000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "40000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "often"}, False),
        ({}, False),
    ],
)
def test_the_environment_says_whom_to_tell(listener: Listener, variables: dict[str, str], fed: bool) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": listener.address, **variables})
    manager.ready()
    manager.alive()
    assert ("WATCHDOG=1" in listener.heard()) is fed


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_an_address_nothing_is_opened(variables: dict[str, str]) -> None:
    manager = ServiceManager.from_environment(variables)
    manager.ready()
    manager.step(1, loss=0.5)
    assert manager._socket is None
