"""Data read again: rows kept for probing alone, decided when a run begins; and its best weights kept and found."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.schema import SPLITS
from trainer.cli import main
from trainer.learner import Evaluation
from trainer.records import checkpoint_steps, read_records

DATA = "batch_rows = 640"
HELD_OUT = f'{DATA}\npairing = "held_out"'
AUTO = '[stepsize]\npolicy = "auto"'
WORDS = "5 % of the training rows are kept for probing"


def train(config: Path, run: Path, *settings: str) -> int:
    return main(["train", str(config), "--run", str(run), *settings])


def pairing_of(run: Path) -> str:
    return tomllib.loads((run / "config.toml").read_text())["data"]["pairing"]


def events(run: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run / "events.jsonl") if record["event"] == event]


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    return [
        tuple(record[name] for name in ("step", "epoch", "start", "rows", "loss", "learning_rate"))
        for record in read_records(run / "steps.jsonl")
    ]


def test_rows_are_kept_for_probing_where_that_is_asked_for(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run goes on so, whatever budget and policy it is given later, and if it was stopped: bit for bit."""
    config, run, whole = write_config(AUTO, data=HELD_OUT), tmp_path / "run", tmp_path / "whole"
    assert train(config, run, "--budget.steps", "20") == 0
    assert WORDS in capsys.readouterr().err
    assert pairing_of(run) == "held_out"
    [told] = events(run, "held_out")
    assert told["message"].startswith(WORDS)
    assert (told["step"], told["rows"], told["of_rows"]) == (0, 480, 9600)
    assert [step[3] for step in steps_of(run)[:16]] == [640] * 14 + [160, 640]
    assert {record["rows"] for record in read_records(run / "alpha.jsonl")} == {480}
    assert train(config, run, "--budget.steps", "33") == 0
    assert train(config, whole, "--budget.steps", "33") == 0
    assert [step[:4] for step in steps_of(run)] == [step[:4] for step in steps_of(whole)]
    assert train(config, run, "--budget.steps", "34", "--stepsize.policy", "none") == 0
    assert pairing_of(run) == "held_out"
    assert len(events(run, "held_out")) == 1


def test_a_run_of_fixed_rate_resumes_exactly(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    config = write_config('[schedule]\nname = "constant"', data=HELD_OUT)
    assert train(config, tmp_path / "run", "--budget.steps", "7") == 0
    assert train(config, tmp_path / "run", "--budget.steps", "20") == 0
    assert train(config, tmp_path / "whole", "--budget.steps", "20") == 0
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")


def test_otherwise_pairs_are_sliding_and_a_run_keeps_what_it_began_with(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(AUTO, data=DATA), tmp_path / "run"
    assert train(config, run, "--budget.epochs", "1.2") == 0
    assert pairing_of(run) == "sliding"
    assert not events(run, "held_out")
    assert train(config, run, "--budget.epochs", "1.3", "--data.pairing", "held_out") == 2
    assert "data.pairing = 'sliding'" in capsys.readouterr().err


def test_a_followed_log_holds_nothing_out(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(data=f'{DATA}\nfollow = true\npairing = "held_out"')
    assert train(config, tmp_path / "run", "--budget.steps", "3") == 2
    assert "not for data.follow = true" in capsys.readouterr().err


@pytest.fixture
def getting_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses that fall until the run has passed the data once, and rise from the fourth evaluation on."""
    losses = iter([0.6, 0.5, 0.4, 0.45, 0.5, 0.55, 0.6])

    def evaluate(*_: Any, split: str = "validation", **__: Any) -> Evaluation:
        return Evaluation(
            split=split, loss=next(losses), auc=0.7, normalized_entropy=0.9, rows=10, calibration=1.0, auc_error=0.0
        )

    monkeypatch.setattr("trainer.job.learner.evaluate", evaluate)


def test_the_best_weights_are_kept_and_evaluated(
    tmp_path: Path, write_config: Callable[..., Path], getting_worse: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The third evaluation is in the second pass, and no save is due then."""
    config, run = write_config('[eval]\nsplits = ["validation"]\nevery_steps = 8', data=DATA), tmp_path / "run"
    assert train(config, run, "--budget.steps", "48", "--checkpoint.keep", "1") == 0
    assert checkpoint_steps(run) == [48, 24]
    err = " ".join(capsys.readouterr().err.split())
    assert f"best at step 24: validation 0.40000, at the end 0.55000; `alphastream evaluate {run} --best`" in err
    monkeypatch.undo()
    found = []
    for best in ([], ["--best"]):
        assert main(["evaluate", str(run), "--json", *best]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [each["step"] for each in found] == [48, 24]
    assert found[0]["loss"] != found[1]["loss"]


def test_best_without_an_evaluation_or_a_checkpoint_is_told(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = write_config('[eval]\nsplits = ["test"]', data=DATA)
    assert train(config, run, "--budget.steps", "3") == 0
    assert main(["evaluate", str(run), "--best"]) == 2
    assert "has no validation loss to choose the best by" in capsys.readouterr().err
    with (run / "evals.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "split": SPLITS[1], "loss": 0.1}) + "\n")
    assert main(["evaluate", str(run), "--best"]) == 2
    assert "was best at step 2, validation 0.10000, and its first checkpoint is later" in capsys.readouterr().err
