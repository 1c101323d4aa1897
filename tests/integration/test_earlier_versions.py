"""Data folders and runs that an earlier version wrote are read, scored and continued.

tests/fixtures/earlier is what 0.1.0 left of 120 generated lines (`alphastream sample --rows 120 --seed 3`) and of a run
of 14 steps on them, its newest checkpoint taken away: all 14 steps are on record, the run goes on from the seventh.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import main
from trainer.records import RunHistory, read_records

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
CHECKPOINT_STEP = 7


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The earlier run beside its data, as relative as its settings name it."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def records(run: Path, name: str) -> list[dict[str, Any]]:
    return list(read_records(run / f"{name}.jsonl"))


def test_earlier_data_is_whole_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(EARLIER / "data")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(EARLIER / "data"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {split["split"]: split["rows"] for split in found["splits"]} == {"train": 96, "validation": 12, "test": 12}


def test_an_earlier_checkpoint_is_scored_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--split", "test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["rows"], found["auc"]) == (CHECKPOINT_STEP, 12, 0.125)
    assert found["loss"] == pytest.approx(0.6941204082128456, rel=1e-6)  # what 0.1.0 said


def test_an_earlier_run_goes_on_as_it_would_have(run: Path) -> None:
    """Other processors round otherwise, so numbers are compared to the digits that float32 keeps."""
    steps, estimates = records(run, "steps"), records(run, "alpha")
    assert main(["train", str(run / "config.toml"), "--run", str(run)]) == 0
    again = records(run, "steps")
    for key in ("step", "epoch", "start", "rows"):
        assert [record[key] for record in again] == [record[key] for record in steps]
    for key in ("loss", "learning_rate", "scheduled_rate"):
        assert [record[key] for record in again] == pytest.approx([record[key] for record in steps], rel=1e-5)
    assert [record["seconds"] for record in again[:CHECKPOINT_STEP]] == [
        record["seconds"] for record in steps[:CHECKPOINT_STEP]
    ]
    found = records(run, "alpha")
    assert [(record["step"], record["outcome"]) for record in found] == [
        (record["step"], record["outcome"]) for record in estimates
    ]
    assert [record["slope"] for record in found] == pytest.approx(
        [record["slope"] for record in estimates], rel=1e-3, abs=1e-6
    )
    assert all("biased" in record for record in found)
    told = [event["event"] for event in records(run, "events") if event["event"] != "pause"]
    assert told[-4:] == ["stop", "resume", "checkpoint", "stop"]
    assert (run / "checkpoints" / "step-00000014").is_dir()


def test_an_earlier_run_is_reported(run: Path) -> None:
    assert RunHistory.load(run).damaged_lines == 0
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "loss.png").is_file()
