"""A real Prometheus scrapes a real server, loads the rules, and answers with the numbers that went in."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from ops.metrics import Metrics
from ops.server import Server

RULES = Path(__file__).parents[3] / "ops" / "rules" / "alphastream.yml"
PATIENCE_SECONDS = 30.0


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    for relative in (-20.0, 0.4, 1.8, 1.9, 2.5):
        metrics.step(0.05, {"data_wait": 0.01, "forward": 0.04}, 256, 0.5, 1e-3, 4)
        metrics.estimate("ok" if relative > 0 else "ascent", relative, 1)
    metrics.stages({"decode": (0.5, 1280.0)})
    return metrics


@pytest.fixture
def api(prometheus: str, metrics: Metrics, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes `metrics` five times a second."""
    with Server(metrics, "127.0.0.1", 0, dict) as server:
        config = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "alphastream", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
            ],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        log = tmp_path / "log"
        command = [prometheus, f"--config.file={tmp_path / 'prometheus.yml'}", "--web.listen-address=127.0.0.1:0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield until(lambda: ready(listening(log)))
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_SECONDS)


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it finds something; another process cannot be waited for otherwise."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline, "Prometheus did not come that far"
        pause.wait(0.05)
    return found


def listening(log: Path) -> str | None:
    found = re.search(r'"Listening on" address=(127.0.0.1:\d+)', log.read_text(encoding="utf-8"))
    return found and f"http://{found[1]}"


def ready(api: str | None) -> str | None:
    """The address once Prometheus has loaded its storage and rules; it listens, and answers 503, before."""
    if api is None:
        return None
    try:
        with urlopen(f"{api}/-/ready", timeout=10):
            return api
    except HTTPError:
        return None


def ask(api: str, path: str, **parameters: str) -> Any:
    with urlopen(f"{api}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as response:
        return json.load(response)["data"]


def value(api: str, query: str) -> float | None:
    """The single number a query gives, None while there is none."""
    result = ask(api, "query", query=query)["result"]
    return float(result[0]["value"][1]) if result else None


def test_a_real_prometheus_reads_every_series(api: str, metrics: Metrics) -> None:
    assert until(lambda: value(api, 'up{job="alphastream"} == 1')) == 1
    assert until(lambda: value(api, "alphastream_steps_total")) == 5
    assert value(api, "sum(alphastream_step_phase_seconds_total)") == pytest.approx(0.25)
    # A histogram whose first bound is negative survives the way through OpenMetrics.
    assert value(api, 'alphastream_alpha_relative_bucket{le="-10.0"}') == 1
    assert value(api, 'alphastream_alpha_relative_bucket{le="+Inf"}') == 5
    assert value(api, "histogram_quantile(0.5, alphastream_alpha_relative_bucket)") == pytest.approx(1.55)
    names = set(ask(api, "label/__name__/values"))
    exported = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    # OpenMetrics has no count of a histogram that has no sum.
    assert exported - names == {"alphastream_alpha_relative_count"}
    rules = [rule for group in ask(api, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 28
    assert not [rule["name"] for rule in rules if rule.get("lastError")]
