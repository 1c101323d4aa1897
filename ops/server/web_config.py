"""TLS, users and headers as a file in Prometheus's own format describes them, read again when it or a key changes.

The format is that of exporter-toolkit, which Prometheus and its exporters share
(https://prometheus.io/docs/prometheus/latest/configuration/https/); `promtool check web-config` checks it.
"""

from __future__ import annotations

import importlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.server.access import Passwords

LOOK_SECONDS = 5.0
"""Files are looked at again after so long."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "tls_server_config": (
        *("cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version", "max_version"),
        "prefer_server_cipher_suites",
    ),
    "http_server_config": ("http2", "headers"),
}
NOT_HERE = {
    **dict.fromkeys(("cipher_suites", "curve_preferences"), "OpenSSL's own choice is used"),
    **dict.fromkeys(("cert", "key", "client_ca"), "give a file"),
    "client_allowed_sans": "any client of client_ca_file is let in",
    "rate_limit": "connections are bounded already",
}
"""Keys of the format that are refused, and why."""
CLIENTS = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
"""Those that the format has."""
_BCRYPT = re.compile(r"\$2[abxy]?\$\d\d\$[./A-Za-z0-9]{53}")


class WebConfigError(ValueError):
    """A web config file, or a file that it names, cannot be used; the message says which, what, and what to do."""


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """What one such file asks for."""

    tls: ssl.SSLContext | None
    passwords: Passwords
    headers: Mapping[str, str]
    """Of every answer, in place of ours of the same name."""
    files: tuple[Path, ...]
    """It was read from."""

    def opens(self, before: WebConfig) -> str | None:
        """What `before` asked of clients and this no longer does; None if nothing."""
        if before.tls is not None and self.tls is None:
            return "TLS"
        if before.tls is not None and self.tls is not None and self.tls.verify_mode < before.tls.verify_mode:
            return "client certificates as before"
        return "passwords" if before.passwords and not self.passwords else None


NOTHING = WebConfig(tls=None, passwords=Passwords({}), headers={}, files=())
"""Plain HTTP for anyone."""


def load_web_config(path: Path) -> WebConfig:
    """The configuration in the YAML file at `path`; files that it names are relative to its folder.

    Raises: WebConfigError for a file that cannot be read, an unknown key, a value that cannot be used or that this
    server has no way to honor, and a package that is not installed.
    """
    values = _section(_read_yaml(path), path, "", (*SECTIONS, "basic_auth_users"))
    tls, http = ({**_section(values.get(name), path, name, keys)} for name, keys in SECTIONS.items())
    headers = _section(http.get("headers"), path, "http_server_config.headers", HEADERS)
    context, files = _context(tls, path)
    return WebConfig(
        tls=context,
        passwords=_passwords(values.get("basic_auth_users") or {}, path),
        headers={name: _text(value, path, name) for name, value in headers.items()},
        files=(path, *files),
    )


class WebConfigFile:
    """The configuration as the file at `path` has it by now; a change that cannot be used leaves the one before.

    So does one that lets more people in, which a file that is just being written looks like: that takes a restart.
    """

    def __init__(self, path: Path | None, warn: Callable[[str], None] = lambda _: None) -> None:
        """Raises: as `load_web_config`; later, `warn` is told instead."""
        self._path, self._warn = path, warn
        self._current = NOTHING if path is None else load_web_config(path)
        self._seen, self._looked = self._stamps(), time.monotonic()
        self._lock = threading.Lock()

    def current(self) -> WebConfig:
        """What holds for the next connection."""
        with self._lock:
            if self._path is not None and time.monotonic() - self._looked > LOOK_SECONDS:
                self._looked = time.monotonic()
                if (stamps := self._stamps()) != self._seen:
                    self._seen = stamps
                    self._reload(self._path)
            return self._current

    def _reload(self, path: Path) -> None:
        try:
            changed = load_web_config(path)
            if (what := changed.opens(self._current)) is not None:
                raise WebConfigError(f"{path}: no longer asks for {what}; restart if that is meant")
        except WebConfigError as error:
            self._warn(f"{error}; what was read before still holds")
            return
        self._current = changed
        self._seen = self._stamps()

    def _stamps(self) -> list[tuple[int, int] | None]:
        stats = [file.stat() if file.exists() else None for file in self._current.files]
        return [None if stat is None else (stat.st_mtime_ns, stat.st_size) for stat in stats]


def _read_yaml(path: Path) -> Any:
    yaml = _package("yaml", "pyyaml")
    try:
        return yaml.safe_load(path.read_bytes()) or {}
    except OSError as error:
        raise WebConfigError(
            f"metrics.web_config: {path} cannot be read ({error.strerror}); give a file in the format of Prometheus's "
            "--web.config.file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WebConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from None


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise WebConfigError(
            f"metrics.web_config needs {package}, which is not installed; install the extra: "
            "pip install 'alphastream[web]'"
        ) from None


def _section(values: Any, path: Path, name: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise WebConfigError(f"{path}: {name or 'the file'} is {str(values)[:40]!r}; give a mapping of keys to values")
    for key in values:
        if key not in known:
            where = f"{name}.{key}" if name else str(key)
            if key in NOT_HERE:
                raise WebConfigError(f"{path}: {where} has no effect here ({NOT_HERE[key]}); leave it out")
            raise WebConfigError(f"{path}: unknown key {where!r}; known are {', '.join(known)}")
    return values


def _text(value: Any, path: Path, key: str) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise WebConfigError(f"{path}: {key} is {str(value)[:40]!r}; give a text in one line")
    return value


def _passwords(users: Any, path: Path) -> Passwords:
    if not isinstance(users, Mapping):
        raise WebConfigError(f"{path}: basic_auth_users is {str(users)[:40]!r}; give users and bcrypt hashes")
    for user, hashed in users.items():
        if not isinstance(hashed, str) or not _BCRYPT.fullmatch(hashed):
            raise WebConfigError(
                f"{path}: basic_auth_users.{user} is no bcrypt hash; make one with `htpasswd -nBC 10 {user}`"
            )
    if users:
        _package("bcrypt", "bcrypt")
    return Passwords({str(user): hashed for user, hashed in users.items()})


def _context(values: Mapping[str, Any], path: Path) -> tuple[ssl.SSLContext | None, tuple[Path, ...]]:
    """The TLS that is asked for, and the files of it."""
    if not values:
        return None, ()
    given = {key: path.parent / _text(values[key], path, key) for key in _FILES if values.get(key)}
    if not {"cert_file", "key_file"} <= given.keys():
        raise WebConfigError(f"{path}: tls_server_config needs cert_file and key_file; give both")
    clients = _choice(values, "client_auth_type", CLIENTS, "NoClientCert", path)
    if (clients is not ssl.CERT_NONE) != ("client_ca_file" in given):
        raise WebConfigError(f"{path}: client_ca_file and a client_auth_type that verifies go together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _choice(values, "min_version", VERSIONS, "TLS12", path)
    context.maximum_version = _choice(values, "max_version", VERSIONS, "TLS13", path)
    try:
        context.load_cert_chain(given["cert_file"], given["key_file"])
        if clients is not ssl.CERT_NONE:
            context.load_verify_locations(given["client_ca_file"])
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(str(file) for file in given.values())
        raise WebConfigError(f"{path}: {names} cannot be used for TLS ({error}); give PEM files that match") from None
    context.verify_mode = clients
    return context, tuple(given.values())


_FILES = ("cert_file", "key_file", "client_ca_file")


def _choice(values: Mapping[str, Any], key: str, choices: Mapping[str, Any], default: str, path: Path) -> Any:
    value = values.get(key) or default
    if value not in choices:
        raise WebConfigError(f"{path}: tls_server_config.{key} is {str(value)!r}; choose {' or '.join(choices)}")
    return choices[value]
