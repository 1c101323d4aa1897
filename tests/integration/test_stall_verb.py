"""`alphastream stall` on a real run: its output, and delays of known length, in simulated time, that it finds again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.device import DevicePair, Feed
from pipeline.shards import Manifest
from trainer.cli import main
from trainer.config import load_config
from trainer.console import Console
from trainer.job import TrainingState, open_training
from trainer.stall.trials import Rows, StallMeasurement, StallSetup

BUDGET = "[budget]\nsteps = 1000"
COMPUTE, PREPARE, FETCH = 300_000_000, 500_000_000, 700_000_000
"""Simulated nanoseconds a step."""


class Time:
    """A clock that only known delays advance."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class SlowFeed:
    """A real feed whose pairs take `delay` more of the simulated time to arrive."""

    last_wait = None

    def __init__(self, feed: Feed, time: Time, delay: int) -> None:
        self._feed, self._time, self._delay = feed, time, delay

    def __iter__(self) -> SlowFeed:
        return self

    def __next__(self) -> DevicePair:
        self._time.now += self._delay
        return next(self._feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


def test_json_adds_up_and_nothing_is_written(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(BUDGET)
    assert (
        main(["stall", str(config), "--steps", "20", "--warmup-steps", "2", "--json", "--data.batch_rows", "32"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    runs = {run["name"]: run for run in report["runs"]}
    assert all((run["steps"], run["rows"]) == (20, 640) for run in runs.values())
    last = report["runs"][-1]
    assert sum(part["seconds_per_step"] for part in report["parts"]) == pytest.approx(last["seconds_per_step"])
    assert ("cold" in runs) == (report["no_cold_run"] is None)
    assert {use["stage"] for use in runs["warm"]["stages"]} >= {"decode", "shuffle"}
    assert runs["warm"]["bottleneck"] in {use["stage"] for use in runs["warm"]["stages"]}
    assert list(tmp_path.iterdir()) == [config]


def test_tables_name_every_part(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stall", str(write_config(BUDGET)), "--seconds", "0.1", "--warmup-steps", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(("compute-bound: ", "data-bound: ", "unclear: "))
    for word in ("compute", "preparation stall", "warm", "decode", "← "):
        assert word in shown.out
    # Trials as short as these may tell nothing, and then nothing is predicted from them.
    assert ("no waiting for rows" in shown.out) == (not shown.out.startswith("unclear: "))
    assert "warm trial: " in shown.err


@pytest.mark.parametrize("option", [["--steps", "0"], ["--seconds", "0"], ["--warmup-steps", "-1"]])
def test_a_bad_option_is_one_line(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main(["stall", str(write_config(BUDGET)), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option[0].replace("-", "_")[2:] in line.replace("-", "_")


def test_known_delays_are_recovered(write_config: Callable[..., Path]) -> None:
    """Every pair of the real loader arrives late, later when cold; the real model takes its time in a forward pass."""
    config = load_config(write_config(BUDGET + "\n[stepsize]\npolicy = 'none'"))  # α* would call the model again
    time, manifest = Time(), Manifest.load(config.data.path)

    @contextmanager
    def open_state(rows: Rows) -> Iterator[TrainingState]:
        with open_training(config, manifest) as state:
            state.learner.model.register_forward_pre_hook(lambda *_: setattr(time, "now", time.now + COMPUTE))
            delay = PREPARE + FETCH if rows == "cold" else PREPARE
            yield replace(state, feed=cast(Feed, SlowFeed(state.feed, time, delay)))

    setup = StallSetup(steps=3, seconds=60, warmup_steps=1, window_rows=1e9, reader_threads=2)
    report = StallMeasurement(setup, open_state=open_state, console=Console(quiet=True), nanosecond_time=time).run()
    found = {component.name: component.seconds_per_step for component in report.components}
    assert found == pytest.approx({"compute": 0.3, "preparation stall": 0.5, "fetch stall": 0.7})
    assert [trial.waiting_per_step for trial in report.trials] == pytest.approx([0.0, 0.5, 1.2])
    measured = {gain.trial: (gain.predicted, gain.measured) for gain in report.speedups if gain.measured is not None}
    assert measured == {"warm": pytest.approx((8 / 3, 8 / 3)), "cold": pytest.approx((5.0, 5.0))}
