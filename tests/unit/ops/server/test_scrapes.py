"""A server knows whether somebody reads its metrics at intervals, and when they have been read again."""

from __future__ import annotations

import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from ops.metrics import Metrics
from ops.server import Server
from ops.server.scrapes import Scrapes


class FakeTime:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def scrapes(time: FakeTime) -> Scrapes:
    return Scrapes(time)


def scrape(scrapes: Scrapes) -> None:
    assert b"".join(scrapes.noting([b"a", b"b"], began=scrapes.now())) == b"ab"


def test_one_look_is_no_interval(scrapes: Scrapes) -> None:
    assert scrapes.patience() == 0
    scrape(scrapes)
    assert scrapes.patience() == 0


def test_the_next_scrape_is_due_by_the_longest_of_the_latest_gaps(scrapes: Scrapes, time: FakeTime) -> None:
    for gap in (60, 2, 8, 2, 8):
        scrape(scrapes)
        time.now += gap
    scrape(scrapes)
    assert scrapes.patience() == 1.5 * 8 + 1  # the gap of 60 is the fifth back
    time.now += 5
    assert scrapes.patience() == 8
    time.now += 60
    assert scrapes.patience() == 0


def test_an_answer_that_was_not_sent_whole_is_not_noted(scrapes: Scrapes, time: FakeTime) -> None:
    for _ in range(3):
        left = scrapes.noting([b"a", b"b"], began=scrapes.now())
        next(left)
        time.now += 1
    assert scrapes.patience() == 0


def test_what_is_waited_for_is_an_answer_that_began_after(scrapes: Scrapes, time: FakeTime) -> None:
    under_way = scrapes.noting([b"old"], began=time.now)
    time.now += 1
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: waited.append(scrapes.wait(60)))
    waiter.start()
    list(under_way)
    assert not waited
    time.now += 1
    scrape(scrapes)
    waiter.join(timeout=60)
    assert waited == [True]


def test_waiting_ends_with_its_time(scrapes: Scrapes) -> None:
    assert not scrapes.wait(0.0)


def test_only_metrics_that_were_read_count() -> None:
    metrics = Metrics()
    with Server(metrics, "127.0.0.1", 0, dict) as server:
        for _ in range(2):
            for path in ("healthz", "status.json", "nowhere"):
                try:
                    urlopen(f"{server.url}{path}").close()
                except HTTPError as refused:
                    refused.close()
            urlopen(Request(f"{server.url}metrics", method="HEAD")).close()
        assert server.last_scrape_due(60.0) == 0
        for _ in range(2):
            with urlopen(f"{server.url}metrics") as answer:
                answer.read()
        while server.last_scrape_due(60.0) == 0:  # noted by the connection's thread, a moment after it was sent
            pass
        assert 0 < server.last_scrape_due(60.0) <= 1.5 * 60 + 1
        assert server.last_scrape_due(0.0) == 0
        waited: list[bool] = []
        waiter = threading.Thread(target=lambda: waited.append(server.wait_for_scrape(60.0)))
        waiter.start()
        while waiter.is_alive():
            urlopen(f"{server.url}metrics").close()
        assert waited == [True]
