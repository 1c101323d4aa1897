"""A real Prometheus watches real runs: every panel and rule has its data, and every alert fires when it should only.

Durations of the rules are shortened by the one transformation of `rules.shortened`.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.alerts.fleet import Fleet
from tests.faults.alerts.panels import ALONE, AUTO, EMPTY, FOLLOWED, NO_GPU, curves
from tests.faults.alerts.rules import HOUR, ORIGINAL, alerts_of, shortened
from tests.faults.alerts.scenes import EXPECTED, NOT_CAUSED, Scenes, Seen
from tests.faults.alerts.stage import Stage
from tests.faults.runs import block_library
from tests.faults.small_disk import small_file_system
from tests.prometheus_server import prometheus_server
from trainer.cli import main

PATIENCE_SECONDS = 420.0
pytestmark = [pytest.mark.timeout(600), pytest.mark.alone]


@dataclass(kw_only=True)
class Watched:
    """What Prometheus had seen by the end of the play."""

    seen: Seen
    fired: dict[str, set[str]]
    rules: list[dict[str, Any]]
    recorded: dict[str, bool]
    """Recording rules, and whether they had a number for the healthy run."""
    without_number: set[tuple[str, str]]
    """Curves that had none for the healthy run, over all of its time."""
    state: float
    """Of the healthy run, which has ended."""
    reasons: set[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    folder = tmp_path_factory.mktemp("watched")
    assert main(["sample", str(folder / "log"), "--rows", "20000", "--seed", "1"]) == 0
    assert main(["preprocess", str(folder / "log"), "--out", str(folder / "data")]) == 0
    rules = folder / "rules.yml"
    rules.write_text(shortened(ORIGINAL.read_text(encoding="utf-8")), encoding="utf-8")
    with ExitStack() as stack:
        server = stack.enter_context(prometheus_server(program, folder, rules, scrape_seconds=0.5))
        small, library = _unless_skipped(stack, folder)
        fleet = stack.enter_context(Fleet(folder))
        stage = Stage(folder=folder, fleet=fleet, prometheus=server, at_end=stack)
        scenes = Scenes(stage=stage, log=folder / "data", seen=Seen(missing={}))
        began = time.time()
        stage.play(scenes.all(small=small, library=library), patience=PATIENCE_SECONDS, missing=scenes.seen.missing)
        print(f"played for {time.time() - began:.0f} s")
        healthy = stage.actors["healthy"].instance
        fired: dict[str, set[str]] = {name: set() for name in stage.actors}
        for alert, instance in stage.fired_so_far():
            fired[next(name for name, actor in stage.actors.items() if actor.instance == instance)].add(alert)
        [state] = [curve for curve in curves() if curve.panel == "State"]
        [reason] = [curve for curve in curves() if curve.panel == "Why it ended"]
        rules_seen = server.rules()
        records = [rule["name"] for rule in rules_seen if rule["type"] == "recording"]
        yield Watched(
            seen=scenes.seen,
            fired=fired,
            rules=rules_seen,
            recorded={
                name: any(
                    labels.get("instance") == healthy and any(map(math.isfinite, values))
                    for labels, values in server.query_since(name, began, step=0.5)
                )
                for name in records
            },
            without_number={curve.name for curve in curves() if not curve.showed(server, healthy, began)},
            state=next(value for labels, value in state.now(server) if labels["instance"] == healthy),
            reasons={labels["reason"] for labels, _ in reason.now(server) if labels["instance"] == healthy},
        )


def _unless_skipped(stack: ExitStack, folder: Path) -> tuple[Path | None, Path | None]:
    """A small file system and a library that lets reads fail, where they can be had."""
    found: list[Path | None] = []
    for make in (
        lambda: stack.enter_context(small_file_system(folder / "small", mebibytes=64)),
        lambda: block_library(folder),
    ):
        try:
            found.append(make())
        except pytest.skip.Exception:
            found.append(None)
    return found[0], found[1]


def test_every_duration_of_the_rules_is_shortened_and_nothing_else_changed() -> None:
    original = ORIGINAL.read_text(encoding="utf-8")
    short = shortened(original)
    assert len(original.splitlines()) == len(short.splitlines())
    assert not re.search(r"\[\d+[mh]\]|(for|interval): \d+[smh]\b", short)
    annotations = [
        re.findall(r"(?:summary|description): [\s\S]*?\n(?=\n|      - )", text) for text in (original, short)
    ]
    assert annotations[0] == annotations[1]
    large = {number for pair in re.findall(r"[<>=] (\d{3,})|, (\d{3,})\)", short) for number in pair}
    assert large - {""} == {"143", f"{24 * HOUR:g}"}


def test_every_alert_has_a_run_that_raises_it() -> None:
    caused = set[str]().union(*(alerts.fire for alerts in EXPECTED.values()))
    assert caused | NOT_CAUSED.keys() == alerts_of(ORIGINAL.read_text(encoding="utf-8"))
    assert not caused & NOT_CAUSED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_alerts_fire_on_the_run_that_is_in_their_state_and_on_no_other(watched: Watched, name: str) -> None:
    if name not in watched.fired:
        pytest.skip("needs root and mounts on Linux" if name == "disk" else "needs a C compiler, and Linux")
    found, expected = watched.fired[name], EXPECTED[name]
    assert found - expected.may == expected.fire


@pytest.mark.parametrize("state", ["trains", "resumed", "waits"])
def test_every_panel_has_a_number_for_each_of_its_curves(watched: Watched, state: str) -> None:
    assert watched.seen.missing[state] == set()


def test_a_finished_run_is_on_the_boards(watched: Watched) -> None:
    assert watched.state == 0
    assert watched.reasons == {"budget"}
    ends = {name for name, why in EMPTY.items() if why in (NO_GPU, FOLLOWED, AUTO, ALONE)}
    assert watched.without_number <= ends
    assert {name for name, why in EMPTY.items() if why == NO_GPU} <= watched.without_number


def test_every_rule_is_evaluated_without_error(watched: Watched) -> None:
    assert {rule["name"]: rule.get("lastError") for rule in watched.rules if rule["health"] != "ok"} == {}
    assert watched.recorded == dict.fromkeys(watched.recorded, True) | {
        "instance:alphastream_exit_code:last": True,
    }
    assert len(watched.recorded) == 8
