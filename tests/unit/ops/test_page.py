"""The live page, opened in a real browser, shows the run and breaks no rule of its own content policy."""

from __future__ import annotations

import html
import math
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise

import pytest

from ops.live import AlphaFactor, LiveStatus
from ops.metrics import Metrics
from ops.ranks import RankTimes
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

BAND = re.compile(r'<polygon points="([^"]*)"')
HEIGHT = re.compile(r'<text [^>]*y="([\d.]+)" text-anchor="end"')
"""Where the label of a value stands, in units of which a digit is 11 high."""

Open = Callable[[LiveStatus], str]


@pytest.fixture(scope="module")
def open_page(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Serves a status and gives back the page as the browser has built it."""
    profile = tmp_path_factory.mktemp("chromium") / "profile"

    def open_page(live: LiveStatus) -> str:
        with Server(Metrics(), "127.0.0.1", 0, live.snapshot) as server:
            command = [chromium, *FLAGS, f"--user-data-dir={profile}", server.url]
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
        if not 150 <= step < 250:
            relative = math.sin(step) + 2
            factor = AlphaFactor(estimates=min(step + 1, 200), factor=2.0, standard_error=0.1)
            live.estimate(
                step,
                outcome="ok",
                relative=relative,
                absolute=1e-3 * relative,
                per_rate=(-1e3 * relative, 1e6),
                factor=factor,
            )
    live.evaluation(400, "validation", loss=0.48765, auc=0.7812)
    live.message(300, "learning rate 9.1e-4 to 1.4e-3")
    return live


@pytest.fixture(scope="module")
def page_of_trained(open_page: Open) -> str:
    return open_page(trained())


def test_a_run_in_progress_is_shown(page_of_trained: str) -> None:
    page = page_of_trained
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
    assert text(page, "factor") == "2.0 ± 0.20\u00a0×"
    assert "pooled over 200; middle half of single ones 1.3 to 2.7" in text(page, "spread")
    assert text(page, "firststep").startswith("Left out: the first step, 0.020 s, of which 0.0050 s waiting for data")
    # Loss raw and smoothed, the evaluation, the rate, and the suggested rate on either side of the pause in measuring.
    assert page.count("<polyline") == 6
    assert page.count("<polygon") == 2
    assert "NaN" not in page.split("<script>")[0]


def test_axes_have_more_than_two_labels_that_differ(page_of_trained: str) -> None:
    for chart in ("losschart", "ratechart"):
        drawn = page_of_trained.split(f'id="{chart}"')[1].split("</svg>", maxsplit=1)[0]
        for side in ("end", "middle"):
            labels = re.findall(rf'text-anchor="{side}">([^<]*)<', drawn)
            assert len(labels) > 2, (chart, side)
            assert len(set(labels)) == len(labels), (chart, side)


def test_nine_estimates_show_no_number_and_say_why(open_page: Open) -> None:
    live = LiveStatus(StepClock(), run="runs/new")
    for step in range(9):
        factor = AlphaFactor(estimates=step + 1, factor=None, standard_error=None)
        live.estimate(step, outcome="ok", relative=0.3, absolute=3e-4, per_rate=(-1.0, 1.0), factor=factor)
    page = open_page(live)
    assert text(page, "factor") == "–"
    assert text(page, "spread") == "9 of the 10 estimates it takes"


def test_a_run_that_has_not_begun_is_shown_too(open_page: Open) -> None:
    page = open_page(LiveStatus(StepClock(), run="runs/new"))
    assert text(page, "state") == "starting"
    assert text(page, "verdict") == "No step finished yet"
    assert "NaN" not in page.split("<script>")[0]


def test_a_run_that_mostly_evaluates_says_so_and_draws_its_evaluations(open_page: Open) -> None:
    now = [0]
    clock = StepClock(nanosecond_time=lambda: now[0])
    live = LiveStatus(clock, run="runs/one", total_steps=100)
    live.state("evaluating")
    for step in range(40):
        with clock.phase("forward"):
            now[0] += 100_000_000
        live.step(step, epoch=0, rows=256, loss=0.5, learning_rate=1e-3, seconds=clock.finish_step().seconds)
        if step % 10 == 9:
            with clock.phase("evaluation"):
                now[0] += 3_000_000_000
            clock.finish_outside()
            live.evaluation(step + 1, "validation", loss=0.6 - step / 1000, auc=0.7)
    page = open_page(live)
    assert text(page, "verdict") == "Evaluation-bound: 0 % of the time waiting for data, 75 % evaluating and saving"
    assert "evaluation 75.5 %" in page
    assert text(page, "trainingspeed") == "2,560 while training"
    assert text(page, "speed") == "628"
    drawn = page.split('id="losschart"')[1].split("</svg>")[0]
    assert drawn.count("stroke: var(--orange)") == 1
    assert drawn.count("fill: var(--orange)") == 4
    assert text(page, "losslegend").split() == ["training,", "smoothed", "training", "validation"]


def test_ranks_are_a_table_under_the_slowest_one_s_name(open_page: Open, page_of_trained: str) -> None:
    assert not text(page_of_trained, "ranks")
    live = trained()
    live.ranks(RankTimes(steps=50, seconds={"data_wait": [0.0, 4.0], "transfer": [0, 0], "communication": [8.0, 4.0]}))
    page = open_page(live)
    assert text(page, "slowest").startswith("Rank 1 of 2 is the slowest: the others wait for it 50 % of the time")
    drawn = page.split('id="ranks"')[1].split("</table>")[0]
    assert "data wait" in drawn
    assert "transfer" not in drawn
    assert re.findall(r"[\d.]+ %(?=</td>)", drawn) == ["0.0 %", "25.0 %", "50.0 %", "50.0 %", "75.0 %", "100.0 %"]


def test_a_loss_that_is_not_finite_is_no_number_of_before(open_page: Open) -> None:
    """The curve ends where it was known; the tile, and the state, are of now."""
    live = LiveStatus(StepClock(), run="runs/one")
    live.state("training")
    for step in range(60):
        loss = 0.5 if step < 50 else math.nan
        live.step(step, epoch=0, rows=256, loss=loss, learning_rate=1e-3, seconds=0.1)
    live.message(50, "diverged at step 55: the last 5 steps were not finite; back to step 40")
    for step in range(50, 60):
        live.message(step, f"step {step} withheld: the loss is nan")
    page = open_page(live)
    assert text(page, "loss") == "not finite"
    assert text(page, "state") == "training, loss not finite"
    assert re.search(r'class="pill bad" id="state"', page)
    assert "diverged at step 55: the last 5 steps were not finite; back to step 40" in page
    assert "NaN" not in page.split("<script>")[0]


FRAME = (8, 166)
"""Between which heights the loss chart has its values."""


def loss_chart(open_page: Open, trained: list[float], evaluated: list[float]) -> str:
    live = LiveStatus(StepClock(), run="runs/one")
    for step, loss in enumerate(trained):
        live.step(step, epoch=0, rows=256, loss=loss, learning_rate=1e-3, seconds=0.1)
    for number, loss in enumerate(evaluated):
        live.evaluation(number + 1, "validation", loss=loss, auc=0.7)
    return open_page(live).split('id="losschart"')[1].split('id="losslegend"')[0]


def heights(drawn: str) -> list[float]:
    """Of all points of the curves."""
    return [float(point.split(",")[1]) for points in re.findall(r'points="([^"]*)"', drawn) for point in points.split()]


@pytest.mark.parametrize("diverged", [1, 8])
def test_a_few_steps_that_diverged_do_not_frame_the_others(open_page: Open, diverged: int) -> None:
    live = LiveStatus(StepClock(), run="runs/one")
    for step in range(100):
        loss = 1e30 if 40 <= step < 40 + diverged else 0.5 + math.sin(step) / 10
        live.step(step, epoch=0, rows=256, loss=loss, learning_rate=1e-3, seconds=0.1)
    drawn = open_page(live).split('id="losschart"')[1].split("</svg>")[0]
    labels = [float(label) for label in re.findall(r'text-anchor="end">([^<]*)<', drawn)]
    assert 0.3 < min(labels) < max(labels) < 0.7
    assert min(heights(drawn)) < 0  # where they leave the frame, and are cut off
    assert drawn.count("clip-path") == drawn.count("<polyline") == 2


RISING = [
    ([0.4] * 100, [0.5, 0.55]),
    ([0.4] * 100, [0.49, 0.5]),
    ([0.4] * 100, [0.5, 0.49, 0.48, 0.48, 0.48, 0.6]),
    ([0.4] * 100, [1.0, 1.0, 1.0, 1.0, 2.0]),
    ([0.4] * 100, [*[0.5] * 24, 0.51]),
    ([0.02 + step % 2 / 1000 for step in range(100)], [0.45, 0.8]),
    ([0.02], [0.8]),
    ([], [0.5, 0.55]),
]
"""Training losses, and evaluations that are to be seen beside them however far they rise."""


@pytest.mark.parametrize(("trained", "evaluated"), RISING)
def test_evaluations_that_rise_stay_in_the_frame(open_page: Open, trained: list[float], evaluated: list[float]) -> None:
    drawn = loss_chart(open_page, trained, evaluated)
    dots = [float(height) for height in re.findall(r'<circle [^>]*cy="([^"]*)"[^>]*fill: var\(--orange\)', drawn)]
    assert len(dots) == len(evaluated)
    assert FRAME[0] < min(dots) <= max(dots) < FRAME[1]


@pytest.mark.parametrize("trained", [[0.5, 0.55], [0.5] * 99 + [0.6], [0.0] * 99 + [0.6]])
def test_training_that_rises_at_its_end_stays_in_the_frame(open_page: Open, trained: list[float]) -> None:
    reached = heights(loss_chart(open_page, trained, []))
    assert FRAME[0] < min(reached) <= max(reached) < FRAME[1]


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        ([0.5, 0.48, 1e30], []),
        ([0.5 + step / 1000 for step in range(50)], [0.6, 0.5, 1e30]),
        ([0.5 + step / 1000 for step in range(50)], [1e30]),
        ([], [0.6, 0.5, 1e30]),
    ],
)
def test_a_diverged_one_of_few_does_not_frame_the_others(
    open_page: Open, trained: list[float], evaluated: list[float]
) -> None:
    drawn = loss_chart(open_page, trained, evaluated)
    labels = [float(label) for label in re.findall(r'text-anchor="end">([^<]*)<', drawn)]
    assert 0.4 < min(labels) < max(labels) < 0.7


def test_a_run_that_waits_for_rows_says_so_while_it_waits(open_page: Open) -> None:
    now = [0]
    clock = StepClock(nanosecond_time=lambda: now[0])
    live = LiveStatus(clock, run="runs/one")
    live.state("training")
    for step in range(3):
        with clock.phase("forward"):
            now[0] += 1_000_000_000
        live.step(step, epoch=0, rows=256, loss=0.5, learning_rate=1e-3, seconds=clock.finish_step().seconds)
    with clock.phase("data_wait"):
        now[0] += 98_000_000_000
        page = open_page(live)
    assert text(page, "state") == "waiting for data, 1 min 38 s"
    assert text(page, "verdict") == "Data-bound: 98 % of the time waiting for data"


def test_two_stretches_of_estimates_are_bands_that_can_be_seen_beside_labels_that_can_be_read(open_page: Open) -> None:
    """Ten estimates in every hundred steps, a quarter of them below -0.003: two bins with a pause between them."""
    live = LiveStatus(StepClock(), run="runs/new")
    for step in range(150):
        live.step(step, epoch=0, rows=8, loss=0.5, learning_rate=8e-3 - step * 4e-5, seconds=0.01)
        if step % 100 < 10:
            absolute = -3.2e-3 if step % 10 < 4 else 8e-3
            factor = AlphaFactor(estimates=10, factor=2.0, standard_error=0.1)
            rates = (-absolute, 1.0)
            live.estimate(step, outcome="ok", relative=1.0, absolute=absolute, per_rate=rates, factor=factor)
    drawn = open_page(live).split('id="ratechart"')[1].split("</svg>")[0]
    bands = [[tuple(map(float, corner.split(","))) for corner in points.split()] for points in BAND.findall(drawn)]
    assert len(bands) == 2
    for band in bands:
        assert max(x for x, _ in band) - min(x for x, _ in band) == pytest.approx(5)
        assert max(y for _, y in band) - min(y for _, y in band) > 20
    heights = sorted(float(y) for y in HEIGHT.findall(drawn))
    assert len(heights) >= 4
    assert min(after - before for before, after in pairwise(heights)) > 9
