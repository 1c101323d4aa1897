"""TLS, passwords and headers by a file of Prometheus's format, which promtool takes too."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
import trustme

import ops.server.web_config
from ops.metrics import Metrics
from ops.server import Server, WebConfigError
from ops.server.web_config import WebConfigFile, load_web_config
from tests.unit.ops.server.test_access import basic

HASH = bcrypt.hashpw(b"geheim", bcrypt.gensalt(4)).decode()
TLS = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
USERS = f"basic_auth_users: {{ann: '{HASH}'}}\n"
CLIENTS = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  client_ca_file: ca.pem\n"
WHOLE = f"""\
{CLIENTS}\
  client_auth_type: VerifyClientCertIfGiven
  min_version: TLS13
basic_auth_users:
  ann: {HASH}
http_server_config:
  http2: true
  headers:
    X-Frame-Options: deny
    Content-Security-Policy: default-src 'self'
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def write(tmp_path: Path, authority: trustme.CA) -> Callable[[str], Path]:
    """Writes a web config beside a certificate, its key and their authority's."""
    certificate(tmp_path, authority)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def written(text: str) -> Path:
        path = tmp_path / "web.yml"
        path.write_text(text)
        return path

    return written


def certificate(folder: Path, authority: trustme.CA) -> None:
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")


def ask(server: Server, authority: trustme.CA | None, client: trustme.LeafCert | None = None, **headers: str):
    """The answer to a request of /healthz, under TLS where an authority is given."""
    if authority is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    else:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if client is not None:
            client.configure_cert(context)
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
    connection.request("GET", "/healthz", headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_promtool_takes_the_file_of_these_tests(write: Callable[[str], Path]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    checked = subprocess.run(
        ["promtool", "check", "web-config", write(WHOLE)], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def test_tls_and_passwords(write: Callable[[str], Path], authority: trustme.CA) -> None:
    with Server(Metrics(), "127.0.0.1", 0, dict, web_config=write(WHOLE)) as server:
        assert server.url.startswith("https://")
        assert ask(server, authority).status == 401
        assert "Basic" in ask(server, authority).headers["WWW-Authenticate"]
        assert ask(server, authority, Authorization=basic("ann", "falsch")).status == 401
        answer = ask(server, authority, Authorization=basic("ann", "geheim"))
        assert (answer.status, answer.headers["X-Frame-Options"]) == (200, "deny")
        assert answer.headers.get_all("Content-Security-Policy") == ["default-src 'self'"]


def test_clients_that_must_show_a_certificate(write: Callable[[str], Path], authority: trustme.CA) -> None:
    path = write(f"{CLIENTS}  client_auth_type: RequireAndVerifyClientCert\n")
    with Server(Metrics(), "127.0.0.1", 0, dict, web_config=path) as server:
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(server, authority)
        assert ask(server, authority, authority.issue_cert("me")).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(server, authority, trustme.CA().issue_cert("me"))


@pytest.mark.timeout(60)
def test_a_client_that_speaks_no_tls_or_nothing_holds_nobody_up(
    write: Callable[[str], Path], authority: trustme.CA, capfd: pytest.CaptureFixture[str]
) -> None:
    with Server(Metrics(), "127.0.0.1", 0, dict, web_config=write(TLS), request_seconds=float("inf")) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert b"200 OK" not in b"".join(iter(lambda: _received(plain), b""))
        assert ask(server, authority).status == 200
    silent.close()
    assert capfd.readouterr().err == ""


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(
    write: Callable[[str], Path], authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client that trusts the new authority only sees it."""
    monkeypatch.setattr(ops.server.web_config, "LOOK_SECONDS", -1.0)
    path, other, said = write(TLS), trustme.CA(), []
    with Server(Metrics(), "127.0.0.1", 0, dict, web_config=path, warn=said.append) as server:
        assert ask(server, authority).status == 200
        certificate(path.parent, other)
        os.utime(path.parent / "cert.pem", ns=(1, 1))  # another time, however coarse the clock of the disk
        assert ask(server, other).status == 200
        (path.parent / "cert.pem").write_text("nonsense")
        assert ask(server, other).status == 200
        assert ask(server, other).status == 200
    [warning] = said
    assert "cert.pem" in warning
    assert "what was read before still holds" in warning


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (f"{TLS}{USERS}", "", "TLS"),
        (f"{TLS}{USERS}", TLS, "passwords"),
        (USERS, "{}", "passwords"),
        (f"{CLIENTS}  client_auth_type: RequireAndVerifyClientCert\n", TLS, "client certificates"),
    ],
    ids=["empty", "no users yet", "users gone", "no client certificates yet"],
)
def test_a_file_that_is_just_being_written_lets_nobody_in(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, before: str, after: str, lost: str
) -> None:
    monkeypatch.setattr(ops.server.web_config, "LOOK_SECONDS", -1.0)
    said: list[str] = []
    path = write(before)
    file = WebConfigFile(path, said.append)
    held = file.current()
    path.write_text(after)
    os.utime(path, ns=(1, 1))
    assert file.current() is held
    [warning] = said
    assert f"no longer asks for {lost}" in warning
    path.write_text(before)
    os.utime(path, ns=(2, 2))
    assert file.current() is not held, "the whole file is taken up"
    assert len(said) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1, 2]", "the file"),
        ("a: [", "cannot be read as YAML"),
        ("tls_server_confg: {}", "unknown key 'tls_server_confg'; known are tls_server_config"),
        ("tls_server_config: {cert_file: cert.pem}", "needs cert_file and key_file"),
        ("tls_server_config: {cert_file: cert.pem, key_file: none.pem}", "none.pem"),
        ("tls_server_config: {cert_file: cert.pem, key_file: ca.pem}", "cannot be used for TLS"),
        ("tls_server_config: {cert_file: 7, key_file: key.pem}", "cert_file is '7'"),
        (TLS.replace("}", ", min_version: TLS10}"), "min_version is 'TLS10'; choose TLS12 or TLS13"),
        (TLS.replace("}", ", cipher_suites: [A]}"), "cipher_suites has no effect here"),
        (TLS.replace("}", ", client_ca_file: ca.pem}"), "go together"),
        (TLS.replace("}", ", client_auth_type: RequireAndVerifyClientCert}"), "go together"),
        (TLS.replace("}", ", client_auth_type: RequestClientCert}"), "'RequestClientCert'; choose NoClientCert"),
        ("basic_auth_users: {ann: geheim}", "ann is no bcrypt hash"),
        ("basic_auth_users: [ann]", "give users and bcrypt hashes"),
        ("http_server_config: {headers: {Server: x}}", "unknown key 'http_server_config.headers.Server'"),
        ('http_server_config: {headers: {X-Frame-Options: "a\\nb"}}', "one line"),
    ],
)
def test_what_cannot_be_used_is_one_line(write: Callable[[str], Path], text: str, named: str) -> None:
    with pytest.raises(WebConfigError) as caught:
        load_web_config(write(text))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WebConfigError, match=r"none\.yml cannot be read"):
        load_web_config(tmp_path / "none.yml")


@pytest.mark.parametrize("text", ["", "{}", "basic_auth_users:", "tls_server_config:\nhttp_server_config:\n"])
def test_an_empty_one_is_plain_http_for_anyone(write: Callable[[str], Path], text: str) -> None:
    with Server(Metrics(), "127.0.0.1", 0, dict, web_config=write(text)) as server:
        assert ask(server, None).status == 200
