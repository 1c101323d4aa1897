"""What Prometheus sees of a real job: phases that sum to the wall time between two scrapes."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.forked_commands import ForkedCommands

LINE = re.compile(r'^alphastream_step_phase_seconds_total\{phase="(\w+)"\} (\S+)$', re.MULTILINE)
TIME = re.compile(r"^alphastream_(start|last_progress)_timestamp_seconds (\S+)$", re.MULTILINE)
ADDRESS = re.compile(r"(http://\S+/metrics)\s")
BUSY = ("forward", "backward", "optimizer", "alpha", "evaluation", "checkpoint")
SPAN_SECONDS = 5.0


@pytest.fixture
def metrics_url(write_config: Callable[..., Path], tmp_path: Path, forks: ForkedCommands) -> Iterator[str]:
    """The /metrics of a job that trains, evaluates and saves until the test is over."""
    config = write_config(
        "[budget]\nsteps = 1000000\n[eval]\nevery_steps = 50\nrows = 512\n[checkpoint]\nevery_steps = 70"
    )
    process = forks.start("train", config, "--run", tmp_path / "run", "--metrics.port", 0)
    try:
        process.wait_until(lambda: ADDRESS.search(process.said) is not None)
        found = ADDRESS.search(process.said)
        assert found
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143


def scrape(url: str) -> tuple[float, float, dict[str, float]]:
    """Unix times from and up to which time is counted, and each phase's seconds."""
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    times = dict(TIME.findall(text))
    phases = {phase: float(value) for phase, value in LINE.findall(text)}
    return float(times["start"]), float(times["last_progress"]), phases


def test_phases_sum_to_wall_time_within_two_percent(metrics_url: str) -> None:
    """Up to the latest finished step, evaluation or checkpoint; that one ended between two looks at our own clock."""
    while sum((phases := scrape(metrics_url)[2]).values()) < SPAN_SECONDS or not all(phases[name] for name in BUSY):
        time.sleep(0.1)
    before = time.time()
    start, first, phases = scrape(metrics_url)
    assert sum(phases.values()) == pytest.approx(first - start, rel=0.02)
    while (again := scrape(metrics_url))[1] < max(before, first + SPAN_SECONDS):
        time.sleep(0.1)
    _, last, grown = again
    assert before < last < time.time()
    assert sum(grown.values()) - sum(phases.values()) == pytest.approx(last - first, rel=0.02)
