"""Names that are answered to, and passwords."""

from __future__ import annotations

import base64

import bcrypt
import pytest

from ops.server.access import UNKNOWN_USER, Passwords, host_allowed


@pytest.mark.parametrize(
    ("header", "bound", "allowed", "expected"),
    [
        (None, "127.0.0.1", (), True),
        ("127.0.0.1:9464", "127.0.0.1", (), True),
        ("127.0.0.1", "127.0.0.1", (), True),
        ("localhost:9464", "127.0.0.1", (), True),
        ("LOCALHOST", "127.0.0.1", (), True),
        ("a.localhost:1", "127.0.0.1", (), True),
        ("[::1]:9464", "::1", (), True),
        ("[::1]", "127.0.0.1", (), True),
        ("10.0.0.7:9464", "127.0.0.1", (), True),  # through a forwarded port
        ("evil.example", "127.0.0.1", (), False),
        ("evil.example:9464", "127.0.0.1", (), False),
        ("evil.example:9464", "::1", (), False),
        ("evil.example:9464", "localhost", (), False),
        ("evil.example:9464", "127.8.8.8", (), False),
        ("localhost.evil.example", "127.0.0.1", (), False),
        ("evillocalhost", "127.0.0.1", (), False),
        ("127.0.0.1.evil.example", "127.0.0.1", (), False),
        ("", "127.0.0.1", (), False),
        ("trainer.example:9464", "127.0.0.1", ("trainer.example",), True),
        ("Trainer.Example", "127.0.0.1", ("trainer.EXAMPLE",), True),
        ("evil.example", "127.0.0.1", ("trainer.example",), False),
        ("gpu-7.example:9464", "0.0.0.0", (), True),
        ("gpu-7.example:9464", "::", (), True),
        ("gpu-7.example:9464", "10.0.0.7", (), True),
        ("gpu-7.example:9464", "gpu-7.example", ("other",), True),
        ("evil.example:9464", "0.0.0.0", ("gpu-7.example",), False),
        ("10.0.0.7:9464", "0.0.0.0", ("gpu-7.example",), True),
    ],
)
def test_names_that_are_answered_to(header: str | None, bound: str, allowed: tuple[str, ...], expected: bool) -> None:
    assert host_allowed(header, bound=bound, allowed=allowed) == expected


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def passwords() -> Passwords:
    hashed = {name: bcrypt.hashpw(word.encode()[:72], bcrypt.gensalt(4)).decode() for name, word in USERS.items()}
    return Passwords(hashed)


USERS = {"ann": "geheim", "bob": "with:colon", "long": "x" * 100}


@pytest.mark.parametrize("user", list(USERS))
def test_the_right_password(passwords: Passwords, user: str) -> None:
    assert passwords.admit(basic(user, USERS[user]))
    assert passwords.admit(basic(user, USERS[user]))  # from memory
    assert not passwords.admit(basic(user, "y" + USERS[user]))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic ???",
        "Bearer " + basic("ann", "geheim")[6:],
        "Basic " + base64.b64encode(b"ann").decode(),
        "Basic " + base64.b64encode(b"\xff:geheim").decode(),
        basic("ann", "geheim\0"),
        basic("ann", ""),
        basic("carol", "geheim"),
        basic("", "geheim"),
    ],
)
def test_anything_else(passwords: Passwords, header: str | None) -> None:
    assert not passwords.admit(header)


def test_no_users_means_anyone() -> None:
    assert Passwords({}).admit(None)


def test_an_unknown_user_costs_a_comparison() -> None:
    """Whether a user is there must not show in the time."""
    assert not bcrypt.checkpw(b"any", UNKNOWN_USER.encode())
