"""The endpoints answer as promised, and closing the server leaves nothing behind."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ops.metrics import Metrics
from ops.server import AddressError, PortInUseError, Server


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(metrics: Metrics) -> Iterator[Server]:
    with Server(metrics, "127.0.0.1", 0, lambda: {"run": "r", "step": 7}) as server:
        yield server


def ask(
    server: Server, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_metrics_in_the_plain_format(server: Server, metrics: Metrics) -> None:
    metrics.rejected_rows(3)
    response, body = ask(server, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"\nalphastream_rejected_rows_total 3.0\n" in body


def test_metrics_as_openmetrics_where_accepted(server: Server) -> None:
    response, body = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert "alphastream_alpha_relative" in {family.name for family in text_string_to_metric_families(body.decode())}


def test_openmetrics_holds_against_the_strict_parser_with_every_series_in_use(server: Server, metrics: Metrics) -> None:
    for relative in (-20.0, 0.4, 2000.0):
        metrics.estimate("ok", relative, 1)
    metrics.step(0.05, {"data_wait": 0.01, "forward": 0.04}, 256, 0.5, 1e-3, 4)
    metrics.stages({'a "quoted\\" stage': (0.5, 1280.0)})
    metrics.evaluation("validation", 0.5, None, 0.9)
    _, body = ask(server, "/metrics", headers={"Accept": "application/openmetrics-text"})
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["alphastream_alpha_relative"].samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets["-10.0"], buckets["0.5"], buckets["1000.0"], buckets["+Inf"]) == (1, 2, 2, 3)


OPENMETRICS, PLAIN = "application/openmetrics-text", "text/plain"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", PLAIN),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text", OPENMETRICS),
        ("application/openmetrics-text; charset=utf-8; version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text; Q=0.000, */*", PLAIN),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.9", PLAIN),
        ("text/plain;q=0.1, application/openmetrics-text;q=0.9", OPENMETRICS),
        ("text/plain, application/openmetrics-text", PLAIN),
        ("application/openmetrics-text, text/plain", OPENMETRICS),
        ("application/*", OPENMETRICS),
        ("text/*;q=0.2, application/*;q=0.3", OPENMETRICS),
        ("*/*;q=0.9, text/plain;q=0.1", OPENMETRICS),
        ("*/*, text/plain;q=0", OPENMETRICS),
        ("text/plain;q=0", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", PLAIN),
        ("application/openmetrics-text;version=2.0.0, text/plain;q=0.1", PLAIN),
        ("application/json", PLAIN),
        ("application/openmetrics-text;q=nonsense", PLAIN),
        ("application/openmetrics-text;q=1.5", PLAIN),
        ('text/plain;note="a, b;q=0";q=0.5, application/openmetrics-text;q=0.4', PLAIN),
        (",,;q=1,", PLAIN),
        ("*/*;q=0", None),
        ("text/plain;q=0, application/openmetrics-text;q=0", None),
        ("text/*;q=0, application/*;q=0", None),
        ("*/*;q=0, text/plain;q=0.1", PLAIN),
    ],
)
def test_the_format_is_what_the_client_weighs_most(server: Server, accept: str, expected: str | None) -> None:
    response, _ = ask(server, "/metrics", headers={"Accept": accept})
    assert response.status == (200 if expected else 406)
    assert response.headers["Content-Type"].startswith(expected or "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate, gzip;q=0.5, br", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.0", None),
        ("gzip;q=0, *", None),
        ("gzip;q=0.2, identity;q=0.8", None),
        ("gzip;q=0.8, identity;q=0.2", "gzip"),
        ("identity;q=0, gzip", "gzip"),
        ("*", "gzip"),
        ("*;q=0, gzip", "gzip"),
        ("*;q=0, identity", None),
        ("identity", None),
        ("br", None),
        ("gzip;q=x", None),
        ("", None),
    ],
)
def test_gzip_only_if_the_client_takes_it(server: Server, accepted: str, expected: str | None) -> None:
    response, body = ask(server, "/metrics", headers={"Accept-Encoding": accepted})
    assert response.status == 200
    assert response.headers["Content-Encoding"] == expected
    assert b"alphastream_steps_total 0.0\n" in (gzip.decompress(body) if expected else body)


@pytest.mark.parametrize("accepted", ["identity;q=0", "*;q=0", "gzip;q=0, identity;q=0", "br, *;q=0"])
def test_no_coding_left_is_said(server: Server, accepted: str) -> None:
    response, body = ask(server, "/metrics", headers={"Accept-Encoding": accepted})
    assert response.status == 406
    assert b"gzip" in body


def test_only_the_named_series(server: Server) -> None:
    _, body = ask(server, "/metrics?name[]=alphastream_steps_total")
    assert [line for line in body.decode().splitlines() if line[0] != "#"] == ["alphastream_steps_total 0.0"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"}, {"Accept": "*/*;q=0"}],
)
def test_head_of_the_metrics_agrees_with_get(server: Server, headers: dict[str, str]) -> None:
    """Asked of a series that stands still, to the byte."""
    path = "/metrics?name[]=alphastream_steps_total"
    get, body = ask(server, path, headers=headers)
    head, nothing = ask(server, path, "HEAD", headers=headers)
    assert (head.status, nothing) == (get.status, b"")
    described = [[header for header in answer.getheaders() if header[0] != "Date"] for answer in (get, head)]
    assert described[0] == described[1]
    assert int(head.headers["Content-Length"]) == len(body)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nConnection: keep-alive", 200),
        (b"BREW /metrics HTTP/1.1", 405),
        (b"OPTIONS /metrics HTTP/1.1", 405),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1", 404),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1", 414),
        (b"GET /metrics HTTP/x", 400),
        (b"GET /%ff%00 HTTP/1.1", 404),
    ],
)
def test_odd_requests_are_answered_and_hung_up_on(server: Server, line: bytes, status: int) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(line + b"\r\n\r\n")
        try:
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionResetError:
            answer = b""
    assert f" {status} ".encode() in answer[:30] or f"Error code: {status}".encode() in answer


def test_health_and_readiness(server: Server) -> None:
    assert ask(server, "/healthz")[0].status == 200
    assert ask(server, "/readyz")[0].status == 503
    server.mark_ready()
    assert ask(server, "/readyz")[0].status == 200
    server.mark_ready(False)
    assert ask(server, "/readyz")[0].status == 503


def test_status_is_what_the_run_says(server: Server) -> None:
    response, body = ask(server, "/status.json")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert json.loads(body) == {"run": "r", "step": 7}


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nowhere"])
def test_head_sends_no_byte_after_its_headers(server: Server, path: str) -> None:
    """Seen on the wire: a client's library would drop a body that should not be there."""
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 ")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/status.json", "/nowhere"])
def test_head_answers_as_get_without_the_body(server: Server, path: str) -> None:
    get, body = ask(server, path)
    head, nothing = ask(server, path, "HEAD")
    assert (head.status, nothing) == (get.status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    # The numbers of the process change from one scrape to the next, and with them the length.
    if path != "/metrics":
        assert head.headers["Content-Length"] == str(len(body))


def test_unknown_paths_name_the_known_ones(server: Server) -> None:
    response, body = ask(server, "/../../etc/passwd")
    assert response.status == 404
    assert b"/metrics" in body


@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_other_methods_are_refused(server: Server, path: str) -> None:
    response, _ = ask(server, path, "POST")
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


class Assets(HTMLParser):
    """Collects every address a page would load by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src" or (name == "href" and tag != "a"):
                self.loaded.append(value or "")


def test_the_page_is_whole_in_itself(server: Server) -> None:
    response, body = ask(server, "/")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    page = body.decode()
    assets = Assets()
    assets.feed(page)
    assert assets.loaded == ["data:,"]
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_a_used_port_is_one_line_with_a_remedy(server: Server, metrics: Metrics) -> None:
    with pytest.raises(PortInUseError, match=rf"metrics.port = {server.port} is in use.*another port") as caught:
        Server(metrics, "127.0.0.1", server.port, dict)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0), ("no.such.invalid", 0)]
)
def test_an_address_that_cannot_be_listened_on(metrics: Metrics, host: str, port: int) -> None:
    with pytest.raises(AddressError) as caught:
        Server(metrics, host, port, dict)
    assert str(port) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_port_zero_finds_a_free_one_and_two_runs_do_not_mix(server: Server) -> None:
    with Server(Metrics(), "127.0.0.1", 0, lambda: {"run": "other"}) as other:
        assert other.port not in (0, server.port)
        assert json.loads(ask(other, "/status.json")[1]) == {"run": "other"}
        assert json.loads(ask(server, "/status.json")[1])["run"] == "r"


def test_ipv6_loopback(metrics: Metrics) -> None:
    try:
        server = Server(metrics, "::1", 0, dict)
    except AddressError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with server:
        assert server.url == f"http://[::1]:{server.port}/"
        assert ask(server, "/healthz")[0].status == 200


@pytest.mark.timeout(30)
def test_close_leaves_no_thread_and_frees_the_port(metrics: Metrics) -> None:
    """Even with clients that would be waited for forever."""
    before = set(threading.enumerate())
    server = Server(metrics, "127.0.0.1", 0, dict, request_seconds=float("inf"))
    server.start()
    # One client that never sends its request, and one whose request is only half there.
    silent = socket.create_connection((server.host, server.port))
    half = socket.create_connection((server.host, server.port))
    half.sendall(b"GET /metrics HT")
    assert ask(server, "/healthz")[0].status == 200
    server.close()
    assert set(threading.enumerate()) == before
    assert silent.recv(10) == b""
    silent.close()
    half.close()
    server.close()
    Server(metrics, "127.0.0.1", server.port, dict).close()


def test_close_before_start(metrics: Metrics) -> None:
    Server(metrics, "127.0.0.1", 0, dict).close()


def test_a_status_that_fails_is_an_error_to_the_client_and_no_end(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("the run is between two states")

    with Server(metrics, "127.0.0.1", 0, broken) as server:
        assert ask(server, "/status.json")[0].status == 500
        assert ask(server, "/healthz")[0].status == 200
    assert "between two states" in capfd.readouterr().err


def test_many_clients_at_once(server: Server) -> None:
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(ask(server, "/metrics")[0].status)) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert answers == [200] * 12
