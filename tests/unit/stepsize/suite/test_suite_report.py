"""The page, its figures and tables, from runs made by hand."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from stepsize.suite import SuiteError
from stepsize.suite.methods import METHODS
from stepsize.suite.report import Scores, figures, score, write_suite_report
from stepsize.suite.store import PlannedRun
from tests.finished_runs import TINY, all_runs

TASKS = (TINY, replace(TINY, name="text", group="text", title="a < b"), replace(TINY, name="known", fitted=True))
ABSENT = replace(TINY, name="absent")


def losses(planned: PlannedRun) -> tuple[float, float]:
    loss = 1 + 0.1 * abs(math.log10(planned.rate)) + 0.01 * planned.seed + len(planned.method) / 50
    return loss, 1.1 * loss


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(TASKS, list(METHODS), 2, all_runs(TASKS, losses))


@pytest.fixture(scope="module")
def folder(scores: Scores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_suite_report(folder, scores, tasks=[*TASKS, ABSENT], skipped={"absent": "rows.gz is not there"})
    return folder


def test_every_figure_is_drawn_and_shown(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]+)"', page)
    groups = ("classification-and-regression", "text")
    by_group = [f"{kind}-{group}.png" for group in groups for kind in ("guess", "rates")]
    assert sorted(shown) == sorted(["regret.png", "mean-and-worst.png", "profile.png", *by_group])
    for name in shown:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_every_table_is_linked_and_whole(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'<a href="([^"]+\.csv)"', page)
    assert len(names) == 6
    for name in names:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        assert rows, name
        assert all(len(row) == len(head) for row in rows), name
    with (folder / "regret.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(TASKS) * (len(METHODS) + 2)


def test_what_was_skipped_and_fitted_is_said(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "absent: rows.gz is not there." in page
    assert "a &lt; b" in page
    assert "Tasks on which constants were chosen" in page
    tasks = {row["task"]: row for row in csv.DictReader((folder / "tasks.csv").open(encoding="utf-8"))}
    assert tasks["absent"]["state"] == "rows.gz is not there"
    assert tasks["known"]["use"] == "constants were chosen on it"


def test_a_study_with_nothing_done_has_a_page(tmp_path: Path) -> None:
    nothing = score(TASKS, list(METHODS), 2, lambda _: None)
    page = write_suite_report(tmp_path, nothing, tasks=TASKS, skipped={}).read_text(encoding="utf-8")
    assert "Not finished, and left out below: tiny, text, known." in page


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(figures, "import_module", absent)
    with pytest.raises(SuiteError, match=r"matplotlib.*alphastream\[suite\]"):
        figures.new_suite_figure(1, 1)
