"""`alphastream stall` on a real run: its output, and delays of a known length that it finds again."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import pipeline.device.opening
from pipeline.device.model_inputs import ModelInputs
from pipeline.device.ring import Uploader
from pipeline.rows.reader import RowBatch
from pipeline.shards.manifest import Manifest
from trainer.cli import main
from trainer.config import load_config
from trainer.console import Console
from trainer.job.assembly import Parts
from trainer.stall.runs import Rows, StallMeasurement, StallPlan

BUDGET = "[budget]\nsteps = 1000"
COMPUTE, PREPARE, FETCH = 0.3, 0.5, 0.5
"""Seconds a step; long against what the small model and a busy machine take by themselves."""


class Delays:
    """Sleeps of known length, as long as they really were: a busy machine wakes late."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def sleep(self, seconds: float) -> None:
        began = time.perf_counter()
        time.sleep(seconds)
        self.times.append((began, time.perf_counter()))

    @property
    def mean(self) -> float:
        return statistics.fmean(end - began for began, end in self.times)

    @property
    def mean_between(self) -> float:
        return statistics.fmean(after - before for (_, before), (after, _) in itertools.pairwise(self.times))


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
    for word in ("compute", "preparation stall", "warm", "decode", "no waiting for rows", "← "):
        assert word in shown.out
    assert "warm run: " in shown.err


@pytest.mark.parametrize("option", [["--steps", "0"], ["--seconds", "0"], ["--warmup-steps", "-1"]])
def test_a_bad_option_is_one_line(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main(["stall", str(write_config(BUDGET)), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option[0].replace("-", "_")[2:] in line.replace("-", "_")


def test_known_delays_are_recovered_within_five_percent(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's thread sleeps for every pair it makes, longer when cold; the model sleeps in its forward pass."""
    config = load_config(write_config(BUDGET + "\n[stepsize]\npolicy = 'none'"))  # α* would call the model again
    loading: dict[Rows, Delays] = {}
    computing: dict[Rows, Delays] = {}

    class SlowUploader:
        def __init__(self, uploader: Uploader) -> None:
            self._uploader = uploader
            self.mark = uploader.mark

        def upload(self, batch: RowBatch) -> ModelInputs:
            rows = list(loading)[-1]
            loading[rows].sleep(PREPARE + FETCH if rows == "cold" else PREPARE)
            return self._uploader.upload(batch)

    make = pipeline.device.opening.make_uploader
    monkeypatch.setattr(pipeline.device.opening, "make_uploader", lambda *a, **k: SlowUploader(make(*a, **k)))

    def make_parts(rows: Rows, stack: ExitStack) -> Parts:
        loading[rows], computing[rows] = Delays(), Delays()
        parts = Parts(config, Manifest.load(config.data.path), stack)
        parts.model.register_forward_pre_hook(lambda *_: computing[rows].sleep(COMPUTE))
        return parts

    plan = StallPlan(steps=3, seconds=60, warmup_steps=1, window_rows=1e9, reader_threads=2)
    report = StallMeasurement(config, plan, make_parts=make_parts, console=Console(quiet=True)).run()
    compute, preparation, fetch = (part.seconds_per_step for part in report.parts)
    # What the model takes by itself lies between two of its delays.
    assert compute - computing["compute"].mean_between == pytest.approx(computing["compute"].mean, rel=0.05)
    assert compute + preparation == pytest.approx(loading["warm"].mean, rel=0.05)
    assert fetch == pytest.approx(loading["cold"].mean - loading["warm"].mean, rel=0.05)
    for gain in report.speedups:
        if gain.measured is not None:
            assert gain.predicted == pytest.approx(gain.measured, rel=0.05)
