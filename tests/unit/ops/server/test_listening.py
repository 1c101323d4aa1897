"""No client can hold the port: not one that trickles, not hundreds that say nothing."""

from __future__ import annotations

import http.client
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ops.metrics import Metrics
from ops.server import Server


def health(server: Server) -> int:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
    connection.close()
    return status


def hung_up(connection: socket.socket) -> bool:
    """Whether the server has ended the connection without an answer; waits at most ten seconds for a byte."""
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.timeout(60)
def test_a_request_that_trickles_is_hung_up_on_at_its_deadline() -> None:
    """Each byte comes well within any limit on silence, so only a deadline for the whole can end it."""
    with Server(Metrics(), "127.0.0.1", 0, dict, request_seconds=1.0) as server:
        with socket.create_connection((server.host, server.port)) as client:
            client.settimeout(0.05)
            began, ended = time.monotonic(), False
            client.sendall(b"GET /healthz HTTP/1.1\r\n")
            while not ended and time.monotonic() < began + 30:
                try:
                    client.sendall(b"X-a: b\r\n")
                    ended = client.recv(1) == b""
                except TimeoutError:
                    pass
                except ConnectionError:
                    ended = True
        assert ended
        assert health(server) == 200


@pytest.mark.timeout(60)
def test_a_client_that_does_not_read_its_answer_is_hung_up_on() -> None:
    """An answer larger than all buffers on the way, of which nothing is taken."""
    long = {"run": "r" * (16 << 20)}
    with Server(Metrics(), "127.0.0.1", 0, lambda: long, request_seconds=3.0) as server:
        before = threading.active_count()
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(b"GET /status.json HTTP/1.1\r\n\r\n")
            assert client.recv(12).startswith(b"HTTP/1.0 200")
            assert reached(lambda: threading.active_count() == before)


def test_hundreds_of_idle_connections_leave_room_and_few_threads() -> None:
    with Server(Metrics(), "127.0.0.1", 0, dict, request_seconds=float("inf"), most_connections=16) as server:
        before = threading.active_count()
        idle = [socket.create_connection((server.host, server.port)) for _ in range(400)]
        assert [health(server) for _ in range(5)] == [200] * 5
        assert all(hung_up(connection) for connection in idle[:384])  # the oldest made room
        assert reached(lambda: threading.active_count() - before <= 16)
        for connection in idle:
            connection.close()


def test_one_that_is_being_answered_is_not_pushed_out() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> dict[str, str]:
        asked.set()
        assert go_on.wait(30)
        return {"run": "slow"}

    with Server(Metrics(), "127.0.0.1", 0, slow, most_connections=4) as server:
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(b"GET /status.json HTTP/1.1\r\n\r\n")
            assert asked.wait(30)
            idle = [socket.create_connection((server.host, server.port)) for _ in range(12)]
            assert health(server) == 200
            go_on.set()
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.endswith(b'{"run": "slow"}')
        for connection in idle:
            connection.close()


def reached(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether the condition holds before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    return condition()


@pytest.mark.timeout(60)
def test_a_process_without_a_file_left_hangs_up_on_who_says_nothing() -> None:
    """Else the connection that cannot be taken would be asked for without end, beside training."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Server(Metrics(), "127.0.0.1", 0, dict, request_seconds=1000.0) as server, ExitStack() as opened:
        before = threading.active_count()
        idle = opened.enter_context(socket.create_connection((server.host, server.port)))
        assert health(server) == 200  # and the idle one is taken
        assert reached(lambda: threading.active_count() == before + 1)  # and the other one's file given back
        client = socket.socket()
        free = os.dup(0)  # the lowest number that is free
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            client.connect((server.host, server.port))
            assert hung_up(idle)
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            client.settimeout(10)
            assert b" 200 " in client.recv(64)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.close()
