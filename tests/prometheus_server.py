"""A real Prometheus in a process of its own: targets that may be added while it runs, and its answers."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Prometheus:
    """One that is ready."""

    address: str
    targets: Path
    """The file that its targets are read from, as soon as it changes."""

    def scrape(self, *addresses: str) -> None:
        """From now on these are the targets, all of job `alphastream`."""
        aside = self.targets.with_suffix(".new")
        aside.write_text(json.dumps([{"targets": list(addresses)}]), encoding="utf-8")
        aside.rename(self.targets)

    def ask(self, path: str, **parameters: str | float) -> Any:
        """What its API answers; fails if that is an error."""
        address = f"{self.address}/api/v1/{path}"
        try:
            with urlopen(f"{address}?{urlencode(parameters)}", timeout=60) as response:
                return json.load(response)["data"]
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series of an expression, as of now."""
        result = self.ask("query", query=query)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def query_since(self, query: str, since: float, *, step: float) -> list[tuple[dict[str, str], list[float]]]:
        """The same over the time from the Unix time `since` until now, every `step` seconds."""
        result = self.ask("query_range", query=query, start=since, end=time.time(), step=step)["result"]
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in result]

    def value(self, query: str) -> float | None:
        """The single number a query gives, None while there is none."""
        found = self.query(query)
        return found[0][1] if found else None

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


@contextmanager
def prometheus_server(
    program: str, folder: Path, rules: Path, *, targets: tuple[str, ...] = (), scrape_seconds: float = 0.2
) -> Iterator[Prometheus]:
    """A Prometheus that keeps its data in `folder`, scrapes and evaluates `rules` every `scrape_seconds`."""
    interval = f"{round(1000 * scrape_seconds)}ms"
    folder = folder / "prometheus"
    folder.mkdir()
    discovered = folder / "targets.json"
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "alphastream", "file_sd_configs": [{"files": [str(discovered)], "refresh_interval": "5s"}]}
        ],
    }
    settings, log = folder / "prometheus.yml", folder / "log"
    settings.write_text(json.dumps(config), encoding="utf-8")
    command = [program, f"--config.file={settings}", "--web.listen-address=127.0.0.1:0"]
    Prometheus("", discovered).scrape(*targets)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={folder / 'data'}"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Prometheus(until(lambda: _ready(_listening(log))), discovered)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)


def until(
    look: Callable[[], Any], *, patience: float = PATIENCE_SECONDS, late: Callable[[], str] = lambda: "Prometheus"
) -> Any:
    """What `look` finds, once it finds something; another process cannot be waited for otherwise. Fails, with what was
    `late`, when patience is at its end.
    """
    pause, deadline = threading.Event(), time.monotonic() + patience
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"{late()}: did not come that far"
        pause.wait(0.05)
    return found


def _listening(log: Path) -> str | None:
    found = re.search(r'"Listening on" address=(127.0.0.1:\d+)', log.read_text(encoding="utf-8"))
    return found and f"http://{found[1]}"


def _ready(address: str | None) -> str | None:
    """The address once Prometheus has loaded its storage and rules; it listens, and answers 503, before."""
    if address is None:
        return None
    try:
        with urlopen(f"{address}/-/ready", timeout=10):
            return address
    except HTTPError:
        return None
