"""A run that diverges goes back by itself and ends well, also if it is killed meanwhile; a hopeless one ends with 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stepsize.estimate import Estimate
from stepsize.policies.horizon import SingleSteps
from tests.resume import lasting, same_bits
from trainer.config import Config, config_from
from trainer.console import Console
from trainer.job import checkpointing, train, training_state
from trainer.job.lineage import rollback
from trainer.loop import Stop
from trainer.records import load_latest, read_records
from trainer.step import TrainStep


def settings(data: Path, **sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "data": {"path": str(data), "batch_rows": 64},
        "model": {"table_rows": 2048, "embedding_dim": 4, "bottom": [8, 4], "top": [8, 1]},
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "constant"},
        "stepsize": {"policy": "none"},
        "budget": {"steps": 60},
        "checkpoint": {"every_steps": 20, "keep": 10},
        "metrics": {"port": -1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return config_from(values, where="test")


def begin(config: Config, run: Path, **options: Any) -> Stop:
    return train(config, run, console=Console(quiet=True), **options)


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run / "events.jsonl") if record["event"] in kinds]


def losses(run: Path) -> list[float | None]:
    return [record["loss"] for record in read_records(run / "steps.jsonl")]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], bool]], None]:
    """Makes an input of chosen batches, by epoch and start, infinite."""

    def install(chosen: Callable[[int, int], bool]) -> None:
        original = TrainStep.__call__

        def step(self: TrainStep, pair: Any, **options: Any) -> Any:
            if not chosen(pair.epoch, pair.start):
                return original(self, pair, **options)
            before = pair.b2.dense[5, 2].item()
            pair.b2.dense[5, 2] = math.inf
            try:
                return original(self, pair, **options)
            finally:
                pair.b2.dense[5, 2] = before

        monkeypatch.setattr(TrainStep, "__call__", step)

    return install


@pytest.mark.parametrize("policy", ["none", "auto"])
def test_one_batch_that_is_not_finite_is_withheld_and_named(
    small_data: Path, tmp_path: Path, plant: Any, policy: str
) -> None:
    plant(lambda epoch, start: start == 64 * 20)
    config = settings(small_data, stepsize={"policy": policy, "interval": 5, "count": 5})
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    [told] = events(tmp_path / "run", "withheld")
    assert (told["step"], told["epoch"], told["start"], told["rows"], told["cause"]) == (20, 0, 1280, 64, "input")
    assert sum(told["shards"].values()) == 64
    assert "step 20 withheld: an input is inf; rows 1,280 to 1,343 of epoch 0, from train/part-" in told["message"]
    [line] = [record for record in read_records(tmp_path / "run" / "steps.jsonl") if "withheld" in record]
    assert line["withheld"] == {"cause": "input", "what": "an input is inf"}
    assert events(tmp_path / "run", "rollback") == []
    assert 'nonfinite_steps_total{cause="input"} 1.0' in (tmp_path / "run" / "metrics.prom").read_text()
    if policy == "auto":
        [estimate] = [record for record in read_records(tmp_path / "run" / "alpha.jsonl") if record["step"] == 20]
        assert estimate["outcome"] == "dropped"


BAD = range(34, 42)
"""Batches, by their place in the stream, that are planted."""


@pytest.mark.parametrize(
    ("budget", "again"), [((60, 0.0), True), ((56, 0.0), False), ((60, 0.05), False)], ids=["heard", "ended", "cooled"]
)
def test_a_rollback_says_until_when_a_policy_is_held_if_it_is_ever_let_go(
    small_data: Path, tmp_path: Path, plant: Any, budget: tuple[int, float], again: bool
) -> None:
    plant(lambda epoch, start: start // 64 in BAD)
    steps, cooldown = budget
    stepsize = {"policy": "auto", "cooldown": cooldown}
    begin(settings(small_data, budget={"steps": steps}, stepsize=stepsize), tmp_path / "run")
    back = events(tmp_path / "run", "rollback")[0]
    until = back["from"] + (back["from"] - back["to"])
    assert until == 58
    held = f"; from step {until} on the policy measures the rate again" if again else ""
    assert back["message"].endswith(f"of 3){held}")


def test_bad_rows_in_a_row_are_left_behind_at_half_the_rate(small_data: Path, tmp_path: Path, plant: Any) -> None:
    plant(lambda epoch, start: start // 64 in BAD)
    run = tmp_path / "run"
    assert begin(settings(small_data), run) is Stop.BUDGET
    [back] = events(run, "rollback")
    assert (back["from"], back["to"], back["rows_skipped"], back["rate_factor"]) == (39, 20, 19 * 64, 0.5)
    assert "the last 5 steps were not finite; back to step 20" in back["message"]
    assert "policy" not in back["message"]
    steps = list(read_records(run / "steps.jsonl"))
    assert [record["step"] for record in steps] == list(range(60))
    assert [record["start"] // 64 for record in steps] == [*range(20), *range(39, 79)]
    assert [record["learning_rate"] for record in steps] == [0.01] * 20 + [0.005] * 40
    found = load_latest(run)
    assert found is not None
    assert found.state["recovery"]["rollbacks"] == 1
    assert "alphastream_rollbacks_total 1.0" in (run / "metrics.prom").read_text()


class Climber(SingleSteps):
    """A policy that finds every step too short: each estimate raises its rate by a tenth."""

    def __init__(self) -> None:
        self.rate = 0.001

    def wants(self, step: int) -> bool:
        return True

    def learning_rate(self, step: int, scheduled: float) -> float:
        return self.rate

    def observe(self, estimate: Estimate) -> str | None:
        self.rate *= 1.1
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate = state["rate"]


@pytest.mark.parametrize("cut", [None, 45])
def test_a_policy_does_not_climb_back_before_the_run_is_past_where_it_diverged(
    small_data: Path, tmp_path: Path, plant: Any, monkeypatch: pytest.MonkeyPatch, cut: int | None
) -> None:
    """Nineteen estimates came between the checkpoint and the divergence: they would undo the halving eight steps on."""
    plant(lambda epoch, start: start // 64 in BAD)
    monkeypatch.setattr(training_state, "make_policy", lambda *_, **__: Climber())
    run, config = tmp_path / "run", settings(small_data, stepsize={"policy": "auto"})
    if cut is not None:  # what the policy is held to outlives the process
        shorter = settings(small_data, stepsize={"policy": "auto"}, budget={"steps": cut})
        assert begin(shorter, run) is Stop.BUDGET
    assert begin(config, run) is Stop.BUDGET
    [back] = events(run, "rollback")
    assert (back["from"], back["to"]) == (39, 20)
    rates = [record["learning_rate"] for record in read_records(run / "steps.jsonl")]
    held = rates[20]
    assert held == pytest.approx(0.5 * 0.001 * 1.1**20)
    assert rates[20:59] == [held] * 39  # 39 + 19 = 58, whose estimate acts on step 59
    assert rates[59] == pytest.approx(1.1 * held)
    assert len(list(read_records(run / "alpha.jsonl"))) == 60


@pytest.mark.parametrize(
    "bad", [range(34, 39), range(5, 10)], ids=["back to a checkpoint", "back to the first weights"]
)
def test_a_window_of_progressive_validation_goes_back_too(
    small_data: Path, tmp_path: Path, plant: Any, bad: range
) -> None:
    """It holds no row of what was left behind: those of the steps that count, 25 a window."""
    plant(lambda epoch, start: start // 64 in bad)
    run, scored = tmp_path / "run", {"progressive": True, "progressive_rows": 25 * 64}
    assert begin(settings(small_data, eval=scored), run) is Stop.BUDGET
    assert len(events(run, "rollback")) == 1
    windows = [line for line in read_records(run / "evals.jsonl") if line["split"] == "progressive"]
    assert [(line["step"], line["rows"]) for line in windows] == [(25, 25 * 64), (50, 25 * 64)]
    kept = list(read_records(run / "steps.jsonl"))
    for line in windows:
        steps = kept[line["step"] - 25 : line["step"]]
        assert line["loss"] == pytest.approx(math.fsum(step["loss"] for step in steps) / 25, rel=1e-5)


def test_tensorboard_shows_the_steps_that_count(small_data: Path, tmp_path: Path, plant: Any) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
    )
    plant(lambda epoch, start: start // 64 in BAD)
    run = tmp_path / "run"
    assert begin(settings(small_data, metrics={"tensorboard_every_steps": 1}), run) is Stop.BUDGET
    shown = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={accumulator.SCALARS: 0})
    shown.Reload()
    points = [(point.step, point.value) for point in shown.Scalars("loss/train")]
    told = [math.nan if loss is None else loss for loss in losses(run)]
    assert points == [(step, pytest.approx(loss, nan_ok=True)) for step, loss in enumerate(told, 1)]


class KilledError(BaseException):
    """Stands for kill -9: nothing is written on the way out."""


@pytest.mark.parametrize(
    ("where", "average"),
    [*((where, "ema") for where in ("before", "set aside", "saving", "saved", "later")), ("saving", "none")],
)
def test_a_run_that_is_killed_around_a_rollback_ends_as_one_that_was_not(  # noqa: PLR0917
    small_data: Path, tmp_path: Path, plant: Any, monkeypatch: pytest.MonkeyPatch, where: str, average: str
) -> None:
    plant(lambda epoch, start: start // 64 in BAD)
    config = settings(small_data, optimizer={"average": average})
    assert begin(config, tmp_path / "whole") is Stop.BUDGET

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            function(*arguments, **options)
            raise KilledError

        return call

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if where == "before":
            patch.setattr(rollback, "set_aside", killed)
        elif where == "set aside":
            patch.setattr(rollback, "set_aside", after(rollback.set_aside))
        elif where == "saving":
            patch.setattr(checkpointing.Checkpointing, "save_rollback", killed)
        elif where == "saved":
            patch.setattr(
                checkpointing.Checkpointing, "save_rollback", after(checkpointing.Checkpointing.save_rollback)
            )
        else:
            original = TrainStep.__call__

            def step(self: TrainStep, pair: Any, **options: Any) -> Any:
                if options["step"] == 25 and pair.start // 64 > 39:
                    raise KilledError
                return original(self, pair, **options)

            patch.setattr(TrainStep, "__call__", step)
        with pytest.raises(KilledError):
            begin(config, run)
    assert begin(config, run) is Stop.BUDGET
    ended, whole = lasting(run), lasting(tmp_path / "whole")
    assert same_bits(ended[0], whole[0])
    assert ended[1:] == whole[1:]


@pytest.mark.parametrize("keep", [10, 1])
def test_tables_kept_either_way_recover_alike(small_data: Path, tmp_path: Path, plant: Any, keep: int) -> None:
    plant(lambda epoch, start: start // 64 in BAD)
    runs = {}
    for kind in ("dense", "lazy"):
        run = tmp_path / kind
        config = settings(
            small_data, optimizer={"table": kind, "average": "ema"}, checkpoint={"every_steps": 20, "keep": keep}
        )
        assert begin(config, run) is Stop.BUDGET
        assert len(events(run, "rollback")) == 1
        runs[kind] = lasting(run)
    assert runs["dense"][1] == runs["lazy"][1]


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ({"name": "sgd", "lr": 1e4}, {"name": "constant"}),
        ({"name": "sgd", "lr": 1e4}, {"name": "warmup_cosine"}),
        ({"name": "nadamw", "lr": 10.0}, {"name": "constant"}),
        ({"name": "nadamw", "lr": 10.0}, {"name": "warmup_cosine"}),
    ],
    ids=["sgd", "sgd after warm-up", "nadamw", "nadamw after warm-up"],
)
def test_a_rate_far_too_high_is_brought_down_until_the_run_learns(
    small_data: Path, tmp_path: Path, optimizer: dict[str, Any], schedule: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    config = settings(small_data, optimizer=optimizer, schedule=schedule, budget={"steps": 200})
    assert begin(config, run) is Stop.BUDGET
    assert (optimizer["name"] == "sgd") <= len(events(run, "rollback")) <= 3
    [*_, last] = [record["loss"] for record in read_records(run / "evals.jsonl") if record["split"] == "validation"]
    assert last < 0.75  # a guess costs 0.69


def test_a_hopeless_run_ends_with_3_and_what_to_type(
    small_data: Path, tmp_path: Path, plant: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(lambda epoch, start: start // 64 >= 30)
    run = tmp_path / "run"
    assert train(settings(small_data), run, console=Console()) is Stop.DIVERGED
    assert [event["to"] for event in events(run, "rollback")] == [20, 20, 20]
    assert [event["rate_factor"] for event in events(run, "rollback")] == [2.0**-1, 2.0**-7, 2.0**-19]
    said = " ".join(capfd.readouterr().err.split())
    assert f"alphastream train {run}/config.toml --run {run} --from-checkpoint 20 --optimizer.lr 1.9e-09" in said
    weights = load_latest(run)
    assert weights is not None
    assert all(torch.isfinite(tensor).all() for tensor in weights.tensors["model"].values())


def test_without_rollbacks_it_ends_at_once(small_data: Path, tmp_path: Path, plant: Any) -> None:
    plant(lambda epoch, start: start // 64 in BAD)
    run = tmp_path / "run"
    assert begin(settings(small_data, divergence={"rollbacks": 0}), run) is Stop.DIVERGED
    assert len(losses(run)) == 39
    assert events(run, "rollback") == []
