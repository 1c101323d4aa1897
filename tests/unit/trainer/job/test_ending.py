"""The end of a run as Prometheus sees it: exit code and reason of whatever ended it, and time to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.series import EXIT_REASONS
from ops.server import Server
from ops.step_clock import StepClock
from trainer.cli.entry import EXIT_INPUT, EXIT_STORAGE
from trainer.config import ConfigError, config_from
from trainer.console import Console
from trainer.job.ending import end_exported, exit_of, last_scrape_awaited
from trainer.job.observer import Outlets
from trainer.job.run_directory import RunDirectory
from trainer.loop import Stop


@pytest.fixture
def outlets(tmp_path: Path) -> Outlets:
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    clock = StepClock()
    return Outlets(
        directory=RunDirectory(tmp_path / "run", config),
        metrics=Metrics(),
        live=LiveStatus(clock, run="run"),
        clock=clock,
        console=Console(quiet=True),
    )


@contextmanager
def failing() -> Iterator[None]:
    yield
    raise ZeroDivisionError


def test_every_stop_has_its_code_and_a_known_reason() -> None:
    for stop in Stop:
        code, reason = exit_of(stop)
        assert code == stop.exit_code
        assert reason in EXIT_REASONS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("no"), (EXIT_INPUT, "input")),
        (OSError(28, "full"), (EXIT_STORAGE, "io")),
        (RuntimeError("broken"), (1, "error")),
    ],
)
def test_an_error_leaves_the_code_that_the_command_ends_with(
    outlets: Outlets, error: Exception, expected: tuple[int, str]
) -> None:
    with pytest.raises(type(error)), end_exported(outlets):
        raise error
    code, reason = expected
    told = (outlets.directory.path / "metrics.prom").read_text(encoding="utf-8")
    assert f"\nalphastream_exit_code {float(code)}\n" in told
    assert f'\nalphastream_exit_reason{{reason="{reason}"}} 1.0\n' in told


def test_a_run_that_nobody_scrapes_ends_at_once(outlets: Outlets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "wait_for_scrape", None)
    with (
        Server(outlets.metrics, "127.0.0.1", 0, dict) as server,
        last_scrape_awaited(server, outlets, at_most_seconds=60),
    ):
        urlopen(f"{server.url}metrics").close()


@pytest.mark.parametrize("ends", [nullcontext, failing])
def test_a_run_that_is_scraped_waits_until_its_end_is_read(
    outlets: Outlets, monkeypatch: pytest.MonkeyPatch, ends: Callable[[], AbstractContextManager[None]]
) -> None:
    waited = []
    monkeypatch.setattr(Server, "last_scrape_due", lambda _, at_most: min(at_most, 7.0))
    monkeypatch.setattr(Server, "wait_for_scrape", lambda _, seconds: waited.append(seconds))
    with (
        Server(outlets.metrics, "127.0.0.1", 0, dict) as server,
        suppress(ZeroDivisionError),
        last_scrape_awaited(server, outlets, at_most_seconds=60),
        ends(),
    ):
        pass
    assert waited == [7.0]


def test_a_run_that_is_asked_twice_to_stop_waits_for_nobody(outlets: Outlets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "last_scrape_due", lambda _, at_most: at_most)
    monkeypatch.setattr(Server, "wait_for_scrape", None)
    with (
        Server(outlets.metrics, "127.0.0.1", 0, dict) as server,
        pytest.raises(KeyboardInterrupt),
        last_scrape_awaited(server, outlets, at_most_seconds=60),
    ):
        raise KeyboardInterrupt
