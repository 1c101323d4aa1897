"""A real Prometheus scrapes a real server, loads the rules, and answers with the numbers that went in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.metrics import Metrics
from ops.server import Server
from tests.prometheus_server import Prometheus, prometheus_server, until

RULES = Path(__file__).parents[3] / "ops" / "rules" / "alphastream.yml"


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    for relative in (-20.0, 0.4, 1.8, 1.9, 2.5):
        metrics.step(0.05, {"data_wait": 0.01, "forward": 0.04}, 256, 0.5, 1e-3, 4)
        metrics.estimate("ok" if relative > 0 else "ascent", relative, 1)
    metrics.stages({"decode": (0.5, 1280.0)})
    return metrics


@pytest.fixture
def server(prometheus: str, metrics: Metrics, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `metrics` five times a second."""
    with (
        Server(metrics, "127.0.0.1", 0, dict) as served,
        prometheus_server(prometheus, tmp_path, RULES, targets=(f"127.0.0.1:{served.port}",)) as server,
    ):
        yield server


def test_a_real_prometheus_reads_every_series(server: Prometheus, metrics: Metrics) -> None:
    assert until(lambda: server.value('up{job="alphastream"} == 1')) == 1
    assert until(lambda: server.value("alphastream_steps_total")) == 5
    assert server.value("sum(alphastream_step_phase_seconds_total)") == pytest.approx(0.25)
    # A histogram whose first bound is negative survives the way through OpenMetrics.
    assert server.value('alphastream_alpha_relative_bucket{le="-10.0"}') == 1
    assert server.value('alphastream_alpha_relative_bucket{le="+Inf"}') == 5
    assert server.value("histogram_quantile(0.5, alphastream_alpha_relative_bucket)") == pytest.approx(1.55)
    names = set(server.ask("label/__name__/values"))
    exported = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    # OpenMetrics has no count of a histogram that has no sum.
    assert exported - names == {"alphastream_alpha_relative_count"}
    rules = server.rules()
    assert len(rules) == 28
    assert not [rule["name"] for rule in rules if rule.get("lastError")]
