"""What is answered on each path: metrics, health, readiness and the live page."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ops.metrics import Metrics
from ops.server.access import host_allowed
from ops.server.exposition import expose
from ops.server.listening import MOST_CONNECTIONS, REQUEST_SECONDS, HttpServer, address_errors
from ops.server.scrapes import Scrapes
from ops.server.web_config import WebConfigFile

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# The page needs nothing but itself and /status.json; a browser then refuses anything a run's name might smuggle in.
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json; charset=utf-8"
NOT_ACCEPTABLE = b"not acceptable; there are text/plain and application/openmetrics-text, as they are or with gzip\n"

Answer = tuple[str, bytes, list[tuple[str, str]]]
"""Status line, body, headers."""
MISDIRECTED: Answer = (
    "421 Misdirected Request",
    b"this run does not answer to that name; ask by address, or add the name to metrics.allowed_hosts\n",
    [("Content-Type", TEXT)],
)
NOT_ADMITTED: Answer = (
    "401 Unauthorized",
    b"give a user and a password of basic_auth_users\n",
    [("Content-Type", TEXT), ("WWW-Authenticate", 'Basic realm="alphastream", charset="UTF-8"')],
)


class Server:
    """Serves one run from threads of its own.

    `/metrics` (in the format and coding that the client prefers), `/healthz` (200 while the process lives),
    `/readyz` (503 until `mark_ready`, and while `mark_hung` says so), `/` (the live page) and `/status.json` (what
    `status` returns: plain JSON values, called for every request, from another thread).

    The port is taken at once, so that a used one is known before anything expensive starts.

    Raises: PortInUseError, or AddressError for any other address that cannot be listened on; WebConfigError for a
    web config that cannot be used.
    """

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        port: int,
        status: Callable[[], dict[str, Any]],
        *,
        allowed_hosts: Sequence[str] = (),
        web_config: Path | None = None,
        warn: Callable[[str], None] = lambda _: None,
        request_seconds: float = REQUEST_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        """`port` 0 takes any free one; `port` of the object tells which.

        `allowed_hosts` are names it is asked by beside those of `host_allowed`; `web_config` is a file of Prometheus's
        format with TLS and passwords, and `warn` hears of a change to it that cannot be used. A request has
        `request_seconds` from the connection to the end of its answer, and `most_connections` may be open.
        """
        self._metrics = metrics
        self._status = status
        self._ready = threading.Event()
        self._hung: str | None = None
        self._scrapes = Scrapes()
        self._page = resources.files("ops.live").joinpath("page.html").read_bytes()
        self._allowed_hosts = tuple(allowed_hosts)
        self._web = WebConfigFile(web_config, warn)
        self._scheme = "http" if self._web.current().tls is None else "https"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with address_errors(host, port):
            self._http = HttpServer(
                family,
                (host, port),
                self._application,
                tls=lambda: self._web.current().tls,
                request_seconds=request_seconds,
                most_connections=most_connections,
            )
        self._thread: threading.Thread | None = None
        self.host = host
        self.port: int = self._http.server_address[1]

    @property
    def url(self) -> str:
        """The address of the live page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}/"

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

    def mark_hung(self, reason: str | None) -> None:
        """Let `/readyz` say that the run hangs, and why, whether it is ready or not; None once it doesn't."""
        self._hung = reason

    def last_scrape_due(self, at_most: float) -> float:
        """Seconds, `at_most` so many, within which whoever reads /metrics at intervals will again; 0 if nobody does."""
        return min(self._scrapes.patience(), at_most)

    def wait_for_scrape(self, seconds: float) -> bool:
        """Wait until what /metrics says now has been read, for `seconds` at most; whether it has."""
        return self._scrapes.wait(seconds)

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
        web, began = self._web.current(), self._scrapes.now()
        status, body, headers = (
            self._refusal(environ)
            or (None if web.passwords.admit(environ.get("HTTP_AUTHORIZATION")) else NOT_ADMITTED)
            or self._answer(environ)
        )
        sent = _respond(environ, start_response, status, body, headers=[*headers, *web.headers.items()])
        scraped = environ["PATH_INFO"] == "/metrics" and environ["REQUEST_METHOD"] == "GET" and status.startswith("200")
        return self._scrapes.noting(sent, began=began) if scraped else sent

    def _refusal(self, environ: WSGIEnvironment) -> Answer | None:
        """The answer to a request by a name or a method that is not taken."""
        if not host_allowed(environ.get("HTTP_HOST"), bound=self.host, allowed=self._allowed_hosts):
            return MISDIRECTED
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            headers = [("Content-Type", TEXT), ("Allow", "GET, HEAD")]
            return "405 Method Not Allowed", b"only GET and HEAD\n", headers
        return None

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._exposition(environ)
        pages = {
            "/": self._live_page,
            "/status.json": self._live_status,
            "/healthz": _healthy,
            "/readyz": self._readiness,
        }
        return pages.get(path, _nowhere)()

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
        if (reason := self._hung) is not None:
            return "503 Service Unavailable", f"hung: {reason}\n".encode(), [("Content-Type", TEXT)]
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
    described = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **dict(headers),
        "Content-Length": str(len(body)),
    }
    start_response(status, list(described.items()))
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
