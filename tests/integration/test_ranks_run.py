"""A run on several ranks: that of one to rounding, itself bit for bit when continued, resumed on any number of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.forked_commands import ForkedCommands
from tests.integration.ranks_jobs import STEPS, Job, loaded, trained, whole
from trainer.loop import Stop
from trainer.records import RunHistory, load_latest, verify_checkpoints

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"optimizer": {"table": "dense"}},
    "lazy": {"optimizer": {"table": "lazy"}, "data": {"pairing": "disjoint", "probe_rows": 30}},
}
"""Rows moved at every step, or when they are looked at; probes of rows that are trained on next, or never."""


@pytest.fixture(scope="module")
def runs(small_data: Path, tmp_path_factory: pytest.TempPathFactory, forks: ForkedCommands) -> Path:
    """Of each kind `one`, `two` (ranks); and that of two, continued from step 12: `again` on two, `three` on three and
    from step 18 on two, `alone` on one."""
    folder, data = tmp_path_factory.mktemp("runs"), str(small_data)

    def jobs(name: str, step: int | None = None) -> list[Job]:
        return [Job(str(folder / f"{kind}-{name}"), sections, step) for kind, sections in KINDS.items()]

    assert forks.on_ranks(1, trained, data, jobs("one"), folder=folder) == [[Stop.BUDGET] * 2]
    assert forks.on_ranks(2, trained, data, jobs("two"), folder=folder) == [[Stop.BUDGET] * 2] * 2
    for kind in KINDS:
        for copy in ("again", "three", "alone"):
            shutil.copytree(folder / f"{kind}-two", folder / f"{kind}-{copy}")
    forks.on_ranks(3, trained, data, jobs("three", 12), folder=folder)
    forks.on_ranks(1, trained, data, jobs("alone", 12), folder=folder)
    forks.on_ranks(2, trained, data, [*jobs("again", 12), *jobs("three", 18)], folder=folder)
    return folder


@pytest.fixture(scope="module")
def put_back(runs: Path, small_data: Path, forks: ForkedCommands) -> dict[int, list[Any]]:
    """What the checkpoints of two ranks at step 18 put into each of 1, 2 and 3 ranks, by number of ranks and kind."""
    jobs = [Job(str(runs / f"{kind}-two"), sections, 18) for kind, sections in KINDS.items()]
    return {ranks: forks.on_ranks(ranks, loaded, str(small_data), jobs, folder=runs) for ranks in (1, 2, 3)}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_to_rounding(runs: Path, kind: str) -> None:
    one, two = (RunHistory.load(runs / f"{kind}-{name}") for name in ("one", "two"))
    # float32 sums over two shares round otherwise than over one: some 1e-7 a step, which 20 steps multiply
    assert two.steps["loss"] == pytest.approx(one.steps["loss"], rel=1e-5)
    assert two.steps["learning_rate"] == pytest.approx(one.steps["learning_rate"], rel=1e-3)
    assert two.evaluations["validation"]["loss"] == pytest.approx(one.evaluations["validation"]["loss"], rel=1e-5)
    assert list(two.steps["rows"]) == list(one.steps["rows"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_two_ranks_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(runs: Path, kind: str) -> None:
    two, again = (load_latest(runs / f"{kind}-{name}") for name in ("two", "again"))
    assert two is not None
    assert again is not None
    assert two.step == again.step == STEPS
    for file, tensors in two.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(value, again.tensors[file][name]), (file, name)
    first, second = (RunHistory.load(runs / f"{kind}-{name}") for name in ("two", "again"))
    for name in ("loss", "learning_rate"):
        assert list(first.steps[name]) == list(second.steps[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["three", "alone"])
def test_a_run_goes_on_at_another_number_of_ranks_and_back(runs: Path, kind: str, name: str) -> None:
    two, other = (RunHistory.load(runs / f"{kind}-{one}") for one in ("two", name))
    assert len(other.steps["loss"]) == STEPS
    assert other.steps["loss"] == pytest.approx(two.steps["loss"], rel=1e-5)
    assert {health.damage for health in verify_checkpoints(runs / f"{kind}-{name}")} == {None}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_two_ranks_puts_the_same_tensors_into_any_number(
    runs: Path, put_back: dict[int, list[Any]], kind: str, ranks: int
) -> None:
    found = [one[list(KINDS).index(kind)] for one in put_back[ranks]]
    saved = load_latest(runs / f"{kind}-two", wanted=lambda step: step == 18)
    assert saved is not None
    tensors = whole(found)
    for file, named in saved.tensors.items():
        assert named.keys() == {name for one, name in tensors if one == file}
        for name, value in named.items():
            assert torch.equal(tensors[file, name], value), (file, name)
    for index, state in saved.state["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(tensors["state", f"optimizer.state.{index}.{name}"], value), (index, name)
    for one in found:
        assert one["rows"] or ranks == 1
        assert all(len(held.numbers) <= -(-held.rows // ranks) for held in one["rows"].values())
