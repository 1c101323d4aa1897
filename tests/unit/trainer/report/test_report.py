"""A report shows what the run recorded: whole pictures, tables that agree with the log, sentences that are true."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from ops.dashboards import bottleneck
from ops.step_clock import PHASES
from tests.synthetic_run import step_records, write_lines, write_run
from trainer.records.history import RunHistory
from trainer.report.figures import PHASE_COLORS, figures
from trainer.report.report import ReportError, duration, sentences, shown, write_report

FIGURES = ["loss", "learning_rate", "time", "alpha", "bias"]
TABLES = ["summary", "evaluations", "rates", "phases", "outcomes"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "one", 600, variants=True)
    write_report(run)
    return run


class Page(HTMLParser):
    """Collects what a page refers to and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "src":
                self.sources.append(value or "")
            if name == "href":
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(run: Path, table: str) -> list[dict[str, str]]:
    with (run / "report" / f"{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_refers_to_files_beside_it_and_to_nothing_else(run: Path) -> None:
    report = run / "report"
    page = Page((report / "index.html").read_text(encoding="utf-8"))
    assert page.sources == [f"{stem}.png" for stem in FIGURES]
    for link in (*page.sources, *page.links):
        assert link == "data:," or (report / link).is_file()
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        *(f"{stem}.png" for stem in FIGURES),
        *(f"{stem}.csv" for stem in TABLES),
    }


@pytest.mark.parametrize("stem", FIGURES)
def test_pictures_are_large_and_not_blank(run: Path, stem: str) -> None:
    pixels = imread(run / "report" / f"{stem}.png")
    assert pixels.shape[1] >= 1200
    inked = (pixels[..., :3] < 0.9).any(axis=2)
    assert 0.01 < inked.mean() < 0.9


def test_the_curves_drawn_are_those_of_the_log(run: Path) -> None:
    log = RunHistory.load(run)
    drawn = figures(log)
    lines = {line.get_label(): line for line in drawn["loss"].axes[0].lines}
    np.testing.assert_array_equal(lines["validation"].get_ydata(), log.evaluations["validation"]["loss"])
    np.testing.assert_array_equal(lines["training, each step"].get_ydata(), log.steps["loss"])
    applied = next(line for line in drawn["learning_rate"].axes[0].lines if line.get_label() == "applied")
    np.testing.assert_array_equal(applied.get_ydata(), log.steps["learning_rate"])


def test_the_summary_says_what_the_log_holds(run: Path) -> None:
    log = RunHistory.load(run)
    text = " ".join(sentences(log))
    seconds = float(log.steps["seconds"].sum())
    assert f"600 steps over 153,600 rows in {duration(seconds)}" in text
    pauses = sum(float(table["seconds"].sum()) for table in log.evaluations.values())
    wall = float(log.steps["seconds"][1:].sum()) + pauses
    share = float(log.phases["data_wait"][1:].sum()) / wall
    verdict = f"{100 * share:.0f} % of the time waiting for data, {100 * pauses / wall:.0f} % evaluating and saving"
    assert f"Compute-bound: {verdict}." in text
    assert "Best validation loss 0.49714, after 525 steps (test loss there: 0.50314)." in text
    used = log.measured
    factor = -log.alpha["slope"][used].sum() / log.alpha["curvature"][used].sum()
    assert re.findall(r"α\* ([\d.]+) ± [\d.]+: the length that steps should have had", text) == [f"{factor:.3g}"]
    assert "median" not in text
    page = Page((run / "report" / "index.html").read_text(encoding="utf-8"))
    for sentence in sentences(log):
        assert sentence in page.text


def test_tables_agree_with_the_log(run: Path) -> None:
    log = RunHistory.load(run)
    phases = {row["phase"]: float(row["seconds"]) for row in rows(run, "phases")}
    assert phases == pytest.approx(log.phase_totals)
    assert sum(float(row["share"]) for row in rows(run, "phases")) == pytest.approx(1.0)
    outcomes = {row["outcome"]: int(row["estimates"]) for row in rows(run, "outcomes")}
    assert outcomes == log.outcomes
    evaluations = [float(row["loss"]) for row in rows(run, "evaluations") if row["split"] == "test"]
    assert evaluations == log.evaluations["test"]["loss"].tolist()
    summary = {row["figure"]: row["value"] for row in rows(run, "summary")}
    assert summary["steps"] == "600"
    assert float(summary["learning rate applied, highest"]) == log.steps["learning_rate"].max()
    assert len(rows(run, "rates")) == int(log.measured.sum()) // 20


def test_a_run_with_one_step_and_nothing_else(tmp_path: Path) -> None:
    write_lines(tmp_path / "steps.jsonl", step_records(1))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.sources == ["loss.png", "learning_rate.png", "time.png"]
    assert "1 step over" in page.text


def test_one_step_is_no_verdict_and_two_are(tmp_path: Path) -> None:
    step = {"step": 1, "rows": 64, "seconds": 2.0, "loss": 0.5, "phases": {"data_wait": 1.5}}
    write_lines(tmp_path / "steps.jsonl", [step])
    assert sentences(RunHistory.load(tmp_path)) == ["1 step over 64 rows in 2.0 s of training, 32 rows/s."]
    write_lines(tmp_path / "steps.jsonl", [step, {**step, "step": 2}])
    assert sentences(RunHistory.load(tmp_path)) == [
        "2 steps over 128 rows in 4.0 s of training, 32 rows/s.",
        "Data-bound: 75 % of the time waiting for data.",
    ]


def test_numbers_that_are_missing_everywhere(tmp_path: Path) -> None:
    """A run that diverged at once, whose estimates never carried a number."""
    write_lines(tmp_path / "steps.jsonl", [{"step": step, "loss": None, "rows": 1} for step in range(5)])
    write_lines(tmp_path / "alpha.jsonl", [{"step": 0, "outcome": "nonfinite", "relative": None}])
    write_lines(tmp_path / "evals.jsonl", [{"step": 5, "split": "validation", "loss": None}])
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "nonfinite" in page.text
    assert "nan" not in page.text.lower().replace("nan-", "")


def test_a_loss_that_explodes_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    steps = step_records(200)
    for step in steps[150:]:
        step["loss"] = 1e4 * step["loss"]
    write_lines(tmp_path / "steps.jsonl", steps)
    assert figures(RunHistory.load(tmp_path))["loss"].axes[0].get_yscale() == "log"


def test_writing_again_replaces_the_report(run: Path) -> None:
    page = run / "report" / "index.html"
    page.write_text("old", encoding="utf-8")
    assert write_report(run) == page
    assert "Alphastream report" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, "", '{"step": 0, "lo'])
def test_a_run_without_a_finished_step_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "steps.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match=r"no finished step.*train it") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_a_path_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="not a run directory"):
        write_report(tmp_path / "nowhere")


def test_names_in_the_log_cannot_become_markup(tmp_path: Path) -> None:
    write_lines(tmp_path / "steps.jsonl", step_records(2))
    write_lines(tmp_path / "events.jsonl", [{"step": 1, "message": "<script>alert(1)</script>"}])
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<script>" in Page(text).text


def test_long_runs_are_drawn_with_few_points(tmp_path: Path) -> None:
    log = RunHistory.load(write_run(tmp_path, 5000))
    for axes in (axes for figure in figures(log).values() for axes in figure.axes):
        assert all(len(np.asarray(line.get_xdata())) <= 1200 for line in axes.lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        ("ok", "ok"),
        (1234567, "1,234,567"),
        (3.0, "3"),
        (0.123456789, "0.12346"),
        (1.5e-7, "1.5×10⁻⁷"),
        (-1.5e-7, "-1.5×10⁻⁷"),
        (2e16, "2×10¹⁶"),
        (1.23456789e12, "1.2346×10¹²"),
        (0.00012, "0.00012"),
        (0, "0"),
        (123456.7, "123,457"),
    ],
)
def test_numbers_are_shown_for_people(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14159, "3.1 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (7265, "2 h 1 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_captions_exist_for_every_figure(run: Path) -> None:
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall("<figcaption>[^<]{40,}</figcaption>", text)) == len(FIGURES)


def test_one_wild_estimate_does_not_empty_the_pictures(tmp_path: Path) -> None:
    """At a rate near zero α* relative reaches 10¹³; the axes stay where the others are."""
    write_run(tmp_path, 100, variants=True)
    wild = {"step": 99, "outcome": "ok", "relative": 1e13, "biased": {"relative": 1e13}, "absolute": 10.0}
    with (tmp_path / "alpha.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(wild | {"learning_rate": 1e-12}) + "\n")
    log = RunHistory.load(tmp_path)
    drawn = figures(log)
    spread = drawn["alpha"].axes[1]
    labels = [label.get_text() for label in spread.get_xticklabels()]
    assert labels == ["$-10^{4}$", "$-10^{3}$", "-100", "-10", "-1", "0", "1", "10", "100", "$10^{3}$", "$10^{4}$"]
    heights = [patch.get_height() for patch in spread.patches if isinstance(patch, Rectangle)]
    assert sum(heights) == np.isfinite(log.alpha["relative"]).sum()
    assert drawn["bias"].axes[0].get_ylim()[1] < 1e5


def measured_run(path: Path, steps: Sequence[int], *, relative: float = 2.0, scatter: float = 0.0) -> RunHistory:
    """1000 steps, α* measured at `steps`, every other one `scatter` above `relative`, the others below."""
    write_lines(path / "steps.jsonl", step_records(1000))
    write_lines(
        path / "alpha.jsonl",
        [
            {"step": step, "outcome": "ok", "relative": relative, "absolute": relative * 1e-3, "learning_rate": 1e-3}
            | {"slope": -relative + (-scatter if index % 2 else scatter), "curvature": 1.0}
            for index, step in enumerate(steps)
        ],
    )
    return RunHistory.load(path)


@pytest.mark.parametrize(
    ("relative", "advice"),
    [(2.0, "longer steps would have paid"), (0.5, "shorter steps would have paid"), (1.0, "the interval contains 1")],
)
def test_alpha_is_one_number_with_one_advice(tmp_path: Path, relative: float, advice: str) -> None:
    # 100 estimates that scatter by 0.5: a standard error of 0.5 / √99.
    said = sentences(measured_run(tmp_path, range(0, 1000, 10), relative=relative, scatter=0.5))
    [headline] = [sentence for sentence in said if sentence.startswith("α*")]
    assert headline.startswith(f"α* {relative:g} ± 0.098: the length that steps should have had, times the applied one")
    assert advice in headline


def test_nine_estimates_give_no_factor_and_the_page_says_why(tmp_path: Path) -> None:
    log = measured_run(tmp_path, range(9))
    assert "α* is not shown: it takes 10 estimates, and 9 carried a number." in sentences(log)
    assert "times the applied" not in " ".join(sentences(log))
    assert not rows_with(write_report(tmp_path), "α*,")
    drawn = figures(log)
    assert drawn["learning_rate"].axes[0].get_title(loc="left") == "Learning rate applied"
    assert "a spread takes 10" in drawn["alpha"].axes[1].texts[0].get_text()
    assert any("α* 2 ± 0:" in sentence for sentence in sentences(measured_run(tmp_path, range(10))))


def test_a_warm_up_from_next_to_nothing_leaves_the_frame_to_the_rates_after_it(tmp_path: Path) -> None:
    steps = step_records(40)
    for index, step in enumerate(steps):
        step["learning_rate"] = 1e-12 if index == 0 else 8e-3
    write_lines(tmp_path / "steps.jsonl", steps)
    axes = figures(RunHistory.load(tmp_path))["learning_rate"].axes[0]
    low, high = axes.get_ylim()
    assert low == pytest.approx(8e-7)
    assert high > 8e-3


def test_a_rate_that_falls_by_a_tenth_is_framed_whole(tmp_path: Path) -> None:
    steps = step_records(40)
    for index, step in enumerate(steps):
        step["learning_rate"] = 8e-3 if index < 20 else 8e-4
    write_lines(tmp_path / "steps.jsonl", steps)
    low, high = figures(RunHistory.load(tmp_path))["learning_rate"].axes[0].get_ylim()
    assert low == pytest.approx(4e-4)
    assert high > 8e-3


def rows_with(page: Path, start: str) -> list[str]:
    text = (page.parent / "summary.csv").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip('"').startswith(start)]


def test_a_pause_in_measuring_is_drawn_as_a_gap(tmp_path: Path) -> None:
    log = measured_run(tmp_path, [*range(0, 300, 5), *range(700, 1000, 5)])
    axes = figures(log)["learning_rate"].axes[0]
    line = next(line for line in axes.lines if str(line.get_label()).startswith("suggested"))
    step, value = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert np.isnan(value).sum() == 1
    assert ((step < 300) | (step > 700) | np.isnan(step)).all()


@pytest.mark.parametrize("last_event", [{"event": "stop", "reason": "diverged"}, {"event": "start"}, None])
def test_a_run_that_diverged_says_so_first(tmp_path: Path, last_event: dict[str, str] | None) -> None:
    steps = step_records(40)
    for step in steps[30:]:
        step["loss"] = None
    write_lines(tmp_path / "steps.jsonl", steps)
    if last_event:
        write_lines(tmp_path / "events.jsonl", [{"step": 0, **last_event}])
    first = sentences(RunHistory.load(tmp_path))[0]
    assert first.startswith("This run diverged: its last finite loss was")
    assert "at step 29." in first
    assert "optimizer.lr" in first


@pytest.mark.parametrize("reason", ["budget", "signal"])
def test_a_run_that_ended_well_or_goes_on_does_not(tmp_path: Path, reason: str) -> None:
    events = [{"event": "stop", "step": 9, "reason": "diverged"}, {"event": "resume", "step": 5}]
    write_lines(tmp_path / "steps.jsonl", step_records(40))
    write_lines(tmp_path / "events.jsonl", [*events, {"event": "stop", "step": 40, "reason": reason}])
    assert "diverged" not in " ".join(sentences(RunHistory.load(tmp_path)))


def test_the_first_step_is_drawn_apart(tmp_path: Path) -> None:
    steps = [{"step": s, "seconds": 2.0, "rows": 1, "phases": {"data_wait": 0.5, "forward": 1.5}} for s in range(5)]
    steps[0] |= {"seconds": 90.0, "phases": {"data_wait": 80.0, "forward": 10.0}}
    write_lines(tmp_path / "steps.jsonl", steps)
    apart, totals = None, None
    for axes in figures(RunHistory.load(tmp_path))["time"].axes:
        if axes.get_title(loc="left").startswith("The first step"):
            apart = axes
        elif axes.get_title(loc="left").startswith("In all"):
            totals = axes
    assert apart is not None
    assert totals is not None
    assert apart.get_title(loc="left") == "The first step, apart: 90.0 s, 80.0 s waiting for data"
    assert sorted(patch.get_width() for patch in apart.patches if isinstance(patch, Rectangle)) == [10.0, 80.0]
    assert sorted(patch.get_width() for patch in totals.patches if isinstance(patch, Rectangle)) == [2.0, 6.0]


def test_the_smoothed_estimators_are_not_drawn_across_a_pause(tmp_path: Path) -> None:
    write_lines(tmp_path / "steps.jsonl", step_records(1000))
    estimate = {"outcome": "ok", "relative": 2.0, "absolute": 2e-3, "learning_rate": 1e-3, "biased": {"relative": 9.0}}
    steps = [*range(0, 300, 5), *range(700, 1000, 5)]
    write_lines(tmp_path / "alpha.jsonl", [{"step": step} | estimate for step in steps])
    lines = figures(RunHistory.load(tmp_path))["bias"].axes[0].lines
    smooth = [np.asarray(line.get_ydata()) for line in lines if "(both" in str(line.get_label())]
    assert [int(np.isnan(values).sum()) for values in smooth] == [1, 1]


def test_a_phase_has_one_color_in_the_report_the_dashboard_and_the_live_page() -> None:
    page = (Path(bottleneck.__file__).parents[1] / "live" / "page.html").read_text(encoding="utf-8")
    light = page.split("prefers-color-scheme: dark")[0]
    values = dict(re.findall(r"(--\w+): (#[0-9a-f]{6});", light))
    [table] = re.findall(r"const COLOR = \{(.*?)\};", page, re.DOTALL)
    live = {phase: values[variable].upper() for phase, variable in re.findall(r'(\w+): "(--\w+)"', table)}
    assert live.keys() == set(PHASES)
    assert live == bottleneck.PHASE_COLORS == PHASE_COLORS


def test_alpha_of_many_steps_has_a_picture_of_its_own(tmp_path: Path) -> None:
    log = measured_run(tmp_path, range(40))
    assert "horizon" not in figures(log)
    lines = [
        {"step": 40 + 10 * index, "horizon": 10 + index, "outcome": "ok", "relative": 0.6, "standard_error": 0.1}
        for index in range(20)
    ]
    lines.append({"step": 300, "horizon": 80, "outcome": "flat", "relative": None, "standard_error": None})
    write_lines(tmp_path / "horizon.jsonl", lines)
    again = RunHistory.load(tmp_path)
    assert "horizon" in figures(again)
    assert (again.outcomes, len(again.alpha["step"])) == (log.outcomes, 40), "single steps are told of as before"
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "horizon.png" in page
