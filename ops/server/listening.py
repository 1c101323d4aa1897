"""Connections: a thread for each, a deadline for each, and never more than a few that only wait."""

from __future__ import annotations

import contextlib
import errno
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_SECONDS = 10.0
"""From a client's connection to the last byte of its answer; a request that takes longer is hung up on, however
busily its bytes trickle."""
MOST_CONNECTIONS = 64
"""Beyond, the connection that has waited longest for the rest of its request makes room."""

NOTHING_LEFT_SECONDS = 0.25
"""Pause after a connection that this process has no file or memory for."""
_NOTHING_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class AddressError(ValueError):
    """The server cannot listen where it was told to."""


class PortInUseError(AddressError):
    """Another process listens on the port."""


class HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    """Answers by `application`, one request a connection, under TLS where `tls` gives a context for it.

    A connection has `request_seconds`, all in all. At most `most_connections` are held; clients that open more
    and send nothing push one another out, and never one that is being answered.
    """

    daemon_threads = False  # only then does server_close join them
    request_queue_size = 128

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        application: WSGIApplication,
        *,
        tls: Callable[[], ssl.SSLContext | None],
        request_seconds: float,
        most_connections: int,
    ) -> None:
        self.address_family = family
        self._tls = tls
        self._request_seconds, self._most_connections = request_seconds, most_connections
        self._connections = _Connections()
        super().__init__(address, _RequestHandler)
        self.set_app(self._connections.answering(application))

    def server_bind(self) -> None:
        # The base class asks the name service for this machine's name, which can hang for seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            connection, address = super().get_request()
        except OSError as error:
            if error.errno in _NOTHING_LEFT:  # the connection stays in the queue, and would be asked for without end
                self._connections.hang_up_on_oldest()
                time.sleep(NOTHING_LEFT_SECONDS)
            raise  # the base class goes on
        context = self._tls()
        if context is None:
            return connection, address
        try:
            # The handshake is left to the connection's own thread: a client could draw it out.
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except (OSError, ValueError) as error:
            connection.close()
            raise OSError("the client has left") from error  # the base class goes on with the next one

    def process_request(self, request: Any, client_address: Any) -> None:
        while len(self._connections) >= self._most_connections and self._connections.hang_up_on_oldest():
            pass
        self._connections.add(request)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Between requests, several times a second."""
        super().service_actions()
        self._connections.hang_up_before(time.monotonic() - self._request_seconds)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that fell silent, left or speaks no TLS is its own business; anything else is ours and is shown.
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError, ssl.SSLError)):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """End every open connection, so that its thread comes back from waiting for the client."""
        self._connections.hang_up_before(float("inf"))


class _RequestHandler(WSGIRequestHandler):
    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def get_environ(self) -> WSGIEnvironment:
        return super().get_environ() | {"alphastream.connection": self.connection}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing: a scrape every few seconds would drown a training log."""


class _Connections:
    """The open connections, oldest first, and which of them are being answered; safe for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[socket.socket, float] = {}
        self._answered: set[socket.socket] = set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._opened)

    def add(self, connection: socket.socket) -> None:
        with self._lock:
            self._opened[connection] = time.monotonic()

    def discard(self, connection: socket.socket) -> None:
        with self._lock:
            self._opened.pop(connection, None)
            self._answered.discard(connection)

    def answering(self, application: WSGIApplication) -> WSGIApplication:
        """`application`, with the connections counted as answered from its call on."""

        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            connection = cast(socket.socket, environ["alphastream.connection"])
            with self._lock:
                if connection in self._opened:
                    self._answered.add(connection)
            return application(environ, start_response)

        return answer

    def hang_up_on_oldest(self) -> bool:
        """End the connection that has waited longest for its request; False if every one is being answered."""
        with self._lock:
            oldest = next((connection for connection in self._opened if connection not in self._answered), None)
            if oldest is None:
                return False
            del self._opened[oldest]
            _hang_up(oldest)
            return True

    def hang_up_before(self, moment: float) -> None:
        """End every connection opened before `moment`."""
        with self._lock:
            for connection, opened in self._opened.items():
                if opened < moment:
                    _hang_up(connection)


def _hang_up(connection: socket.socket) -> None:
    # A client that has just left cannot be hung up on, and need not be.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # past TLS, whose own state is its thread's


@contextmanager
def address_errors(host: str, port: int) -> Iterator[None]:
    """Turns the system's refusals to listen on `host` and `port` into an AddressError that says what to do."""
    if not 0 <= port <= 65535:
        raise AddressError(f"metrics.port = {port} is not a port; choose one from 1 to 65535, or 0 for any free one")
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"metrics.port = {port} is in use on {host}; stop what listens there, choose another port, "
                "or 0 for any free one"
            ) from None
        raise AddressError(
            f"metrics.host = {host!r}, metrics.port = {port} cannot be listened on ({error.strerror}); "
            "choose an address of this machine, such as 127.0.0.1, and a port above 1023"
        ) from None
