"""A run on two ranks of which one is slow: its phases sum to wall time, and the slow one is named."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.integration.forked_commands import ForkedCommands
from tests.integration.ranks_jobs import STEPS, Job, trained
from trainer.loop import Stop
from trainer.ranks import Ranks
from trainer.records import RunHistory
from trainer.report import write_report
from trainer.step import TrainStep

SLOW, SLEEP_SECONDS = 1, 0.06


def trained_with_a_slow_rank(ranks: Ranks, folder: str, jobs: list[Job]) -> dict[str, Any]:
    """As `trained`; one rank sleeps in every forward pass."""
    loss = TrainStep._loss

    def slow(self: TrainStep, *given: Any) -> Any:
        time.sleep(SLEEP_SECONDS)
        return loss(self, *given)

    if ranks.rank == SLOW:
        cast(Any, TrainStep)._loss = slow
    return {"stops": trained(ranks, folder, jobs), "sent": dict(ranks.sent_bytes)}


@pytest.fixture(scope="module")
def run(
    small_data: Path, tmp_path_factory: pytest.TempPathFactory, forks: ForkedCommands
) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("slow")
    jobs = [Job(str(folder / "run"), {})]
    found = forks.on_ranks(2, trained_with_a_slow_rank, str(small_data), jobs, folder=folder)
    assert [one["stops"] for one in found] == [[Stop.BUDGET]] * 2
    return folder / "run", found


@pytest.fixture(scope="module")
def page(run: tuple[Path, list[Any]]) -> Path:
    return write_report(run[0])


def test_phases_of_a_step_sum_to_its_time_and_communication_is_one(run: tuple[Path, list[Any]]) -> None:
    log = RunHistory.load(run[0])
    assert log.phases["communication"].all()
    assert sum(log.phases.values()) == pytest.approx(log.steps["seconds"], rel=1e-9)


def test_the_times_of_ranks_are_those_of_the_steps_and_pauses_since_the_first(run: tuple[Path, list[Any]]) -> None:
    log = RunHistory.load(run[0])
    assert log.ranks is not None
    assert (log.ranks.ranks, log.ranks.steps) == (2, STEPS - 1)
    for name in ("forward", "backward", "optimizer", "data_wait"):
        of_first = log.ranks.seconds[name][0]
        assert of_first == pytest.approx(float(np.sum(log.phases[name][1:])), abs=1e-5), name
    assert min(log.ranks.seconds["communication"]) > 0


def test_the_slow_rank_is_named_with_its_phase(run: tuple[Path, list[Any]], page: Path) -> None:
    log = RunHistory.load(run[0])
    assert log.ranks is not None
    assert (log.ranks.slowest, log.ranks.longest_phase) == (SLOW, "forward")
    assert log.ranks.seconds["forward"][SLOW] >= (STEPS - 1) * SLEEP_SECONDS
    assert f"Rank {SLOW} of 2 is the slowest" in page.read_text(encoding="utf-8")
    rows = {row["phase"]: row for row in csv.DictReader((page.parent / "ranks.csv").open(encoding="utf-8"))}
    forward = rows["forward"]
    assert float(forward["maximum"]) == float(forward["slowest_rank"]) > float(forward["minimum"])


def test_bytes_by_purpose_are_those_that_the_ranks_counted(run: tuple[Path, list[Any]], page: Path) -> None:
    log = RunHistory.load(run[0])
    step = sum(one["sent"]["gradients"] for one in run[1]) / STEPS  # the same at every step
    assert log.sent_bytes["gradients"] == pytest.approx((STEPS - 1) * step)
    assert log.sent_bytes.keys() >= {"ids", "rows", "row_gradients", "alpha_rows", "alpha", "control", "evaluation"}
    sent = (page.parent / "sent.csv").open(encoding="utf-8")
    purposes = {row["purpose"]: float(row["bytes"]) for row in csv.DictReader(sent)}
    assert purposes == log.sent_bytes
