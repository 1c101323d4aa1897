"""What a run serves while it trains: metrics, live page, and whether it is ready."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from ops.server import Server
from trainer.config import MetricsConfig, config_errors
from trainer.job.ending import last_scrape_awaited
from trainer.job.observer import Outlets


class Readiness(Protocol):
    """What is told whether the run trains."""

    def mark_ready(self) -> None: ...
    def mark_hung(self, reason: str | None) -> None: ...


class Unserved:
    """Nobody asks."""

    def mark_ready(self) -> None:
        pass

    def mark_hung(self, reason: str | None) -> None:
        pass


@contextmanager
def served(address: MetricsConfig, outlets: Outlets) -> Iterator[Readiness]:
    """Within it metrics and live page are served, unless switched off; gives what to tell whether the run trains.

    Raises: ConfigError for an address that cannot be listened on or a web config that cannot be used.
    """
    if address.port < 0:
        yield Unserved()
        return
    with config_errors():
        server = Server(
            outlets.metrics,
            address.host,
            address.port,
            outlets.live.snapshot,
            allowed_hosts=address.allowed_hosts,
            web_config=None if address.web_config is None else Path(address.web_config),
            warn=outlets.console.warn,
        )
    with closing(server):
        server.start()
        outlets.console.say(f"live page {server.url}  metrics {server.url}metrics")
        with last_scrape_awaited(server, outlets, at_most_seconds=address.last_scrape_seconds):
            yield server
