"""Who may read: the name that a browser asks by, and the password of whoever asks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import threading
from collections.abc import Mapping, Sequence

UNKNOWN_USER = "$2b$10$C6UzMDM.H6dfI/f/IKxGhuB0hHC4iHtPcP0uvkc6oI3lGz5b6Zy7W"
"""Compared with the password of a user who is not there, so that it takes as long as for one who is."""


def host_allowed(header: str | None, *, bound: str, allowed: Sequence[str]) -> bool:
    """Whether a request for the name in its Host header is answered, on a server that is `bound` to an address.

    A page of another site can have its own name resolve to 127.0.0.1 and then read what this machine alone may read
    (DNS rebinding); its requests still carry its name. So a server that is bound to the loopback answers to addresses,
    `localhost` and the names `allowed`; one that is open to the network, to any name, unless some are `allowed`.
    """
    if header is None:  # no browser
        return True
    name = _name_of(header)
    if name.lower() in {bound.lower(), *(each.lower() for each in allowed)}:
        return True
    if _address(name) is not None or name.lower() == "localhost" or name.lower().endswith(".localhost"):
        return True
    address = _address(bound)
    loopback = bound.lower() == "localhost" if address is None else address.is_loopback
    return not loopback and not allowed


def _name_of(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() and header.count(":") == 1 else header


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


class Passwords:
    """Users and the bcrypt hashes of their passwords; a password that was right once is not hashed so dearly again."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._one_at_a_time = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there are users, so that not everybody is let in."""
        return bool(self._hashes)

    def admit(self, authorization: str | None) -> bool:
        """Whether an Authorization header names a user with the right password; anyone where there are no users."""
        if not self._hashes:
            return True
        given = _basic(authorization)
        if given is None:
            return False
        user, password = given
        digest = hmac.digest(self._key, password, hashlib.sha256)
        known = self._right.get(user)
        if known is not None and hmac.compare_digest(known, digest):
            return True
        with self._one_at_a_time:  # guesses must not take every core
            right = self._check(user, password)
        if right:
            self._right[user] = digest
        return right

    def _check(self, user: str, password: bytes) -> bool:
        import bcrypt

        expected = self._hashes.get(user)
        same = bcrypt.checkpw(password[:72], (expected or UNKNOWN_USER).encode())  # bcrypt reads 72 bytes
        return same and expected is not None


def _basic(authorization: str | None) -> tuple[str, bytes] | None:
    """User and password of a Basic Authorization header (RFC 7617)."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon and b"\0" not in password else None
    except (binascii.Error, UnicodeDecodeError):
        return None
