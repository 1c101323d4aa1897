"""Ranks find what torchrun would give them; the store is this machine's alone, and another one each time."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pipeline import stages
from trainer.launch import environment
from trainer.launch.environment import LOOPBACK, Meeting, rank_environment, threads_of_a_rank

SERVICE = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}


def given(rank: int, **variables: str) -> dict[str, str]:
    return rank_environment(rank, ranks=4, port=1234, attempt=1, max_restarts=3, environment=variables)


def test_a_rank_knows_its_place() -> None:
    values = given(2, HOME="/home")
    expected = {
        "HOME": "/home",
        "RANK": "2",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": "1234",
        "TORCHELASTIC_RESTART_COUNT": "1",
    }
    assert expected.items() <= values.items()


def test_rank_0_alone_tells_the_service_manager() -> None:
    assert given(0, **SERVICE).items() >= SERVICE.items()
    assert not SERVICE.keys() & given(1, **SERVICE).keys()


def test_ranks_share_the_cores_unless_their_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((8, 2), (3, 1), (9, 2)):
        monkeypatch.setattr(environment, "usable_cores", lambda cores=cores: cores)
        assert threads_of_a_rank(4, {}) == threads
        assert given(0)["OMP_NUM_THREADS"] == str(threads)
    assert threads_of_a_rank(4, {"OMP_NUM_THREADS": "5"}) is None
    assert given(0, OMP_NUM_THREADS="5")["OMP_NUM_THREADS"] == "5"
    assert stages.usable_cores() >= 1


def test_gloo_listens_on_this_machine_alone_unless_it_is_told_otherwise() -> None:
    assert given(0)["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert given(0, GLOO_SOCKET_IFNAME="eth0")["GLOO_SOCKET_IFNAME"] == "eth0"


def test_the_store_is_served_on_a_free_port_and_knows_nothing_of_one_before() -> None:
    ports = set[int]()
    for _ in range(2):
        with Meeting() as meeting:
            store = TCPStore(LOOPBACK, meeting.port, is_master=False, timeout=timedelta(seconds=60))
            assert not store.check(["rank"])
            store.set("rank", "0")
            ports.add(meeting.port)
            del store
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex((LOOPBACK, port)) != 0, "closed with the meeting"
