"""Going on from an older checkpoint, with other settings; and what the alerts advise, typed as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_divergence import BAD, begin, events, plant, settings
from trainer.cli import main
from trainer.config import ConfigError, config_to_toml
from trainer.job.daemon import Job
from trainer.loop import Stop
from trainer.records import read_records
from trainer.step import TrainStep

__all__ = ["plant"]
RULES = Path(__file__).parents[2] / "ops" / "rules" / "alphastream.yml"


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def run(small_data: Path, tmp_path: Path) -> Path:
    """A run of 60 steps with checkpoints at 20, 40 and 60."""
    assert begin(settings(small_data, stepsize={"policy": "median_hold"}), tmp_path / "run") is Stop.BUDGET
    return tmp_path / "run"


def test_a_run_goes_on_from_an_older_checkpoint_and_keeps_the_later_ones_until_it_has_its_own(
    small_data: Path, run: Path
) -> None:
    config = settings(small_data, stepsize={"policy": "none"}, optimizer={"lr": 0.002}, budget={"steps": 30})
    assert begin(config, run, from_checkpoint=20) is Stop.BUDGET
    [back] = events(run, "back")
    assert (back["step"], back["left"]) == (20, ["step-00000060", "step-00000040"])
    steps = list(read_records(run / "steps.jsonl"))
    assert [record["step"] for record in steps] == list(range(30))
    assert [record["learning_rate"] for record in steps[20:]] == [0.002] * 10
    [changed] = events(run, "settings")
    assert changed["changes"]["optimizer.lr"] == {"from": 0.01, "to": 0.002}
    assert changed["changes"]["stepsize.policy"] == {"from": "median_hold", "to": "none"}
    assert changed["changes"]["budget.steps"] == {"from": 60, "to": 30}
    assert "optimizer.lr 0.01 → 0.002" in changed["message"]
    assert changed["message"].endswith("the policy begins anew")
    assert checkpoints(run) == ["step-00000020", "step-00000030"]


def test_later_checkpoints_are_set_aside_until_then(
    small_data: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(TrainStep, "__call__", stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        begin(settings(small_data, stepsize={"policy": "median_hold"}), run, from_checkpoint=20)
    assert checkpoints(run) == ["left-step-00000040", "left-step-00000060", "step-00000020"]


def test_a_stop_before_any_step_keeps_what_was_set_aside(
    small_data: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped saves, but no later step; nor does the one that continues it and is stopped at once."""
    config = settings(small_data, stepsize={"policy": "median_hold"})
    with monkeypatch.context() as patch:
        patch.setattr(Job, "stopping", lambda job: True)
        assert begin(config, run, from_checkpoint=20) is Stop.INTERRUPTED
        assert begin(config, run) is Stop.INTERRUPTED
    assert checkpoints(run) == ["left-step-00000040", "left-step-00000060", "step-00000020"]
    assert begin(config, run) is Stop.BUDGET
    assert checkpoints(run) == ["step-00000020", "step-00000040", "step-00000060"]


def test_a_rate_given_anew_is_whole_also_if_the_run_dies_before_it_saves(
    small_data: Path, tmp_path: Path, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, answer = tmp_path / "run", {"optimizer": {"lr": 0.02}, "budget": {"steps": 70}}
    plant(lambda epoch, start: start // 64 in BAD)
    assert begin(settings(small_data), run) is Stop.BUDGET
    assert list(read_records(run / "steps.jsonl"))[-1]["learning_rate"] == 0.005, "half of the rate"

    def died(*_: Any, **__: Any) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", died)
        with pytest.raises(RuntimeError, match="died"):
            begin(settings(small_data, **answer), run)
    assert begin(settings(small_data, **answer), run) is Stop.BUDGET
    assert [record["learning_rate"] for record in read_records(run / "steps.jsonl")][60:] == [0.02] * 10


@pytest.mark.parametrize("policy", ["none", "observe", "ema", "auto"])
def test_a_policy_may_change_on_the_way(small_data: Path, run: Path, policy: str) -> None:
    config = settings(small_data, stepsize={"policy": policy, "interval": 10, "count": 5}, budget={"steps": 70})
    assert begin(config, run) is Stop.BUDGET
    # the newest checkpoint is of the new policy, an older one of the first
    assert begin(config, run, from_checkpoint=40) is Stop.BUDGET
    assert len(list(read_records(run / "steps.jsonl"))) == 70


def test_median_hold_keeps_its_rate_where_its_intervals_change(small_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "held"
    before = {"policy": "median_hold", "interval": 10, "count": 4, "start": 2}
    assert begin(settings(small_data, stepsize=before), run) is Stop.BUDGET
    held = list(read_records(run / "steps.jsonl"))[-1]["learning_rate"]
    after = settings(small_data, stepsize={**before, "interval": 30}, budget={"steps": 62})
    assert begin(after, run) is Stop.BUDGET
    assert [record["learning_rate"] for record in read_records(run / "steps.jsonl")][-2:] == [held, held]


def test_a_step_without_a_checkpoint_is_refused_by_name(small_data: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint of step 30 to continue from; it has 20, 40, 60"):
        begin(settings(small_data, stepsize={"policy": "median_hold"}), run, from_checkpoint=30)


def test_another_model_is_refused_and_says_why(small_data: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.table_rows = 2048, now it is 4096, which would be another model"):
        begin(settings(small_data, model={"table_rows": 4096}), run)


def advice() -> list[tuple[str, str]]:
    """Alert and command, of every alert that advises to go back."""
    found = []
    for block in RULES.read_text(encoding="utf-8").split("- alert: ")[1:]:
        text = " ".join(block.split())
        commands = re.findall(r"`(alphastream train [^`]*)`", text)
        found += [(block.split()[0], command) for command in commands if "--from-checkpoint" in command]
    return found


def test_the_alerts_of_divergence_advise_to_go_back() -> None:
    assert {alert for alert, _ in advice()} >= {
        "AlphastreamLossNotFinite",
        "AlphastreamLossDiverging",
        "AlphastreamValidationWorse",
    }


@pytest.mark.parametrize(("alert", "command"), advice(), ids=lambda value: value if value.startswith("Alpha") else "")
def test_what_an_alert_advises_works_as_it_is_typed(alert: str, command: str, run: Path) -> None:
    typed = command.replace("RUN", str(run)).replace("STEP", "40").replace("RATE", "0.001")
    program, *arguments = shlex.split(typed)
    assert program == "alphastream"
    assert main(arguments) == 0
    rates = [record["learning_rate"] for record in read_records(run / "steps.jsonl")]
    assert len(rates) == 60
    assert rates[40] == 0.001


def test_what_a_diverged_run_advises_works_as_it_is_typed(
    small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "run.toml", tmp_path / "one that's diverged"
    path.write_text(config_to_toml(settings(small_data, optimizer={"name": "sgd", "lr": 0.1}, budget={"steps": 20})))
    assert main(["train", str(path), "--run", str(run)]) == 0
    worse = ["--optimizer.lr", "1e4", "--budget.steps", "60", "--divergence.rollbacks", "0", "--checkpoint.every_steps"]
    assert main(["train", str(path), "--run", str(run), *worse, "1"]) == 3
    assert max(checkpoints(run)) > "step-00000020", "which holds weights that are no good"
    said = " ".join(capfd.readouterr().err.split())
    found = re.search(r"(alphastream train .+ --run .+ --from-checkpoint \d+ --optimizer.lr [\w.+-]+);", said)
    assert found is not None
    step = int(found[1].split("--from-checkpoint ")[1].split()[0])
    assert 20 <= step <= int(max(checkpoints(run)).removeprefix("step-")), "of before the loss left"
    # a tenth of a rate that is far too high may be too high as well: what counts is that it is taken
    assert main(shlex.split(found[1])[1:]) in (0, 3)
    assert events(run, "resume")[-1]["step"] == step


def test_a_run_with_nothing_to_go_back_to_is_told_to_begin_otherwise(
    small_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(small_data, optimizer={"name": "sgd", "lr": 1e4}, divergence={"rollbacks": 0})
    path = tmp_path / "run.toml"
    path.write_text(config_to_toml(config))
    assert main(["train", str(path), "--run", str(tmp_path / "none")]) == 3
    said = " ".join(capfd.readouterr().err.split())
    assert "nothing was saved before: begin a new run with a lower optimizer.lr" in said
