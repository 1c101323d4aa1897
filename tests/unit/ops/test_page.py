"""The live page, opened in a real browser, shows the run and breaks no rule of its own content policy."""

from __future__ import annotations

import html
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.server import Server
from ops.step_clock import StepClock

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    "--dump-dom",
]

Open = Callable[[LiveStatus], str]


@pytest.fixture
def open_page(chromium: str, tmp_path: Path) -> Open:
    """Serves a status and gives back the page as the browser has built it."""

    def open_page(live: LiveStatus) -> str:
        with Server(Metrics(), "127.0.0.1", 0, live.snapshot) as server:
            command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", server.url]
            result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        complaints = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        assert complaints == []
        return result.stdout

    return open_page


def text(page: str, identity: str) -> str:
    """The text of the element with this id."""
    found = re.search(rf'id="{identity}"[^>]*>(.*?)</(?:h1|span|div|ul|section)>', page, re.DOTALL)
    assert found is not None, f"no element {identity}"
    return html.unescape(re.sub(r"<[^>]+>", " ", found[1])).strip()


def trained() -> LiveStatus:
    """A run at step 400 of 1000 that waits for data a quarter of its time."""
    now = [0]
    clock = StepClock(nanosecond_time=lambda: now[0])
    live = LiveStatus(clock, run="runs/<b>one</b>", total_steps=1000)
    live.state("training")
    for step in range(400):
        for phase, nanoseconds in (("data_wait", 5_000_000), ("forward", 15_000_000)):
            with clock.phase(phase):
                now[0] += nanoseconds
        seconds = clock.finish_step().seconds
        live.step(step, epoch=0, rows=256, loss=0.5, learning_rate=1e-3, seconds=seconds)
        live.estimate(step, outcome="ok", relative=math.sin(step) + 2, absolute=1e-3 * (math.sin(step) + 2))
    live.evaluation(400, "validation", loss=0.48765, auc=0.7812)
    live.message(300, "learning rate 9.1e-4 to 1.4e-3")
    return live


def test_a_run_in_progress_is_shown(open_page: Open) -> None:
    page = open_page(trained())
    assert text(page, "run") == "runs/<b>one</b>"
    assert "<b>one" not in page
    assert text(page, "state") == "training"
    assert text(page, "steps") == "step 400 of 1,000 · epoch 1 · 102,400 rows"
    assert text(page, "left") == "40.0 % · 12 s left"
    assert text(page, "speed") == "12,800"
    assert text(page, "verdict") == "Data-bound: 25 % of the time waiting for data"
    assert "data wait 25.0 %" in page
    assert "0.48765" in page
    assert "learning rate 9.1e-4 to 1.4e-3" in page
    assert page.count("<polyline") == 4
    assert page.count("<polygon") == 1
    assert "NaN" not in page.split("<script>")[0]


def test_a_run_that_has_not_begun_is_shown_too(open_page: Open) -> None:
    page = open_page(LiveStatus(StepClock(), run="runs/new"))
    assert text(page, "state") == "starting"
    assert text(page, "verdict") == "No step finished yet"
    assert "NaN" not in page.split("<script>")[0]
