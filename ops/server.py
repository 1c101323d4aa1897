"""The HTTP endpoints of a running job: metrics, health, readiness and the live page."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ops.exposition import expose
from ops.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# The page needs nothing but itself and /status.json; a browser then refuses anything a run's name might smuggle in.
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json; charset=utf-8"
IDLE_SECONDS = 10
NOT_ACCEPTABLE = b"not acceptable; there are text/plain and application/openmetrics-text, as they are or with gzip\n"

Answer = tuple[str, bytes, list[tuple[str, str]]]
"""Status line, body, headers."""


class AddressError(ValueError):
    """The server cannot listen where it was told to."""


class PortInUseError(AddressError):
    """Another process listens on the port."""


class Server:
    """Serves one run from threads of its own.

    `/metrics` (in the format and coding that the client prefers), `/healthz` (200 while the process lives),
    `/readyz` (503 until `mark_ready`), `/` (the live page) and `/status.json` (what `status` returns:
    plain JSON values, called for every request, from another thread).

    The port is taken at once, so that a used one is known before anything expensive starts.

    Raises: PortInUseError, or AddressError for any other address that cannot be listened on.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, status: Callable[[], dict[str, Any]]) -> None:
        """`port` 0 takes any free one; `port` of the object tells which."""
        self._metrics = metrics
        self._status = status
        self._ready = threading.Event()
        self._page = resources.files("ops").joinpath("live.html").read_bytes()
        self._http = _listen(host, port)
        self._http.set_app(self._application)
        self._thread: threading.Thread | None = None
        self.host = host
        self.port: int = self._http.server_address[1]

    @property
    def url(self) -> str:
        """The address of the live page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def start(self) -> None:
        """Begin to answer requests."""
        serve = self._http.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.1,), name="ops-server", daemon=True)
        self._thread.start()

    def mark_ready(self, ready: bool = True) -> None:
        """Let `/readyz` say whether the run trains."""
        if ready:
            self._ready.set()
        else:
            self._ready.clear()

    def close(self) -> None:
        """Stop answering, hang up on every client and join every thread; may be called twice."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.hang_up()
        self._http.server_close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in ("GET", "HEAD"):
            allow = [("Content-Type", TEXT), ("Allow", "GET, HEAD")]
            return _respond(environ, start_response, "405 Method Not Allowed", b"only GET and HEAD\n", headers=allow)
        if path == "/metrics":
            status, body, headers = self._exposition(environ)
            return _respond(environ, start_response, status, body, headers=headers)
        pages = {
            "/": self._live_page,
            "/status.json": self._live_status,
            "/healthz": _healthy,
            "/readyz": self._readiness,
        }
        status, body, headers = pages.get(path, _nowhere)()
        return _respond(environ, start_response, status, body, headers=headers)

    def _exposition(self, environ: WSGIEnvironment) -> Answer:
        exposition = expose(
            self._metrics.registry,
            accept=environ.get("HTTP_ACCEPT"),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING"),
            names=parse_qs(environ.get("QUERY_STRING", "")).get("name[]", ()),
        )
        if exposition is None:
            return "406 Not Acceptable", NOT_ACCEPTABLE, [("Content-Type", TEXT)]
        return "200 OK", exposition.body, list(exposition.headers)

    def _live_page(self) -> Answer:
        return "200 OK", self._page, [("Content-Type", HTML), ("Content-Security-Policy", CONTENT_POLICY)]

    def _live_status(self) -> Answer:
        return "200 OK", json.dumps(self._status(), allow_nan=False).encode(), [("Content-Type", JSON)]

    def _readiness(self) -> Answer:
        if self._ready.is_set():
            return "200 OK", b"ready\n", [("Content-Type", TEXT)]
        return "503 Service Unavailable", b"not training\n", [("Content-Type", TEXT)]


def _healthy() -> Answer:
    return "200 OK", b"ok\n", [("Content-Type", TEXT)]


def _nowhere() -> Answer:
    return "404 Not Found", b"not found; there are / /metrics /healthz /readyz /status.json\n", [("Content-Type", TEXT)]


def _respond(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: str,
    body: bytes,
    *,
    headers: list[tuple[str, str]],
) -> Iterable[bytes]:
    start_response(
        status,
        [
            *headers,
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class _RequestHandler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing: a scrape every few seconds would drown a training log."""


class _HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = False  # only then does server_close join them

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._clients: set[socket.socket] = set()
        self._clients_lock = threading.Lock()
        super().__init__(address, _RequestHandler)

    def server_bind(self) -> None:
        # The base class asks the name service for this machine's name, which can hang for seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._clients_lock:
            self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._clients_lock:
            self._clients.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that fell silent or left is its own business; anything else is ours and is shown.
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """End every open connection, so that its thread comes back from waiting for the client."""
        with self._clients_lock:
            for client in self._clients:
                # A client that has just left cannot be hung up on, and need not be.
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)


def _listen(host: str, port: int) -> _HttpServer:
    if not 0 <= port <= 65535:
        raise AddressError(f"metrics.port = {port} is not a port; choose one from 1 to 65535, or 0 for any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return _HttpServer(family, (host, port))
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
