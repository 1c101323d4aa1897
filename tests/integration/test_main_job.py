"""The product's promise on real click logs: two commands, four settings, a validation loss below 0.495."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli import main
from trainer.records import read_records

pytestmark = pytest.mark.timeout(600)
PHASES = {
    "data_wait", "transfer", "forward", "backward", "optimizer", "alpha", "communication", "evaluation", "checkpoint",
    "other",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of dlrm-tiny on the 137,139 real rows with nothing configured but what the README names."""
    folder = tmp_path_factory.mktemp("main")
    log = real_data / "criteo_kaggle_137139.tsv.gz"
    assert main(["preprocess", str(log), "--out", str(folder / "data")]) == 0
    config = folder / "config.toml"
    config.write_text(
        f'[data]\npath = "{folder / "data"}"\nbatch_rows = 256\n'
        '[model]\npreset = "dlrm-tiny"\n[budget]\nepochs = 1\n'
        "[metrics]\nport = 0\n"  # any free port, so that tests can run beside a job
    )
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder / "run"


def test_validation_loss(run: Path) -> None:
    evaluations = {record["split"]: record for record in read_records(run / "evals.jsonl")}
    assert evaluations["validation"]["rows"] == evaluations["test"]["rows"] == 13_713
    assert evaluations["validation"]["loss"] < 0.495
    assert evaluations["test"]["loss"] < 0.51
    assert evaluations["validation"]["auc"] > 0.73


def test_every_training_row_is_trained_on_once(run: Path) -> None:
    steps = list(read_records(run / "steps.jsonl"))
    assert sum(record["rows"] for record in steps) == 109_713
    assert [record["start"] for record in steps] == [256 * step for step in range(429)]


def test_records_hold_the_contract(run: Path) -> None:
    step = next(iter(read_records(run / "steps.jsonl")))
    assert {"step", "epoch", "rows", "loss", "learning_rate", "seconds", "phases"} <= step.keys()
    assert step["phases"].keys() == PHASES
    alpha = next(iter(read_records(run / "alpha.jsonl")))
    fields = "step age outcome slope curvature relative absolute standard_error learning_rate"
    assert set(fields.split()) <= alpha.keys()
    evaluation = next(iter(read_records(run / "evals.jsonl")))
    fields = "step split loss auc normalized_entropy rows seconds training_seconds"
    assert set(fields.split()) <= evaluation.keys()


def test_phases_of_every_step_sum_to_its_time(run: Path) -> None:
    for record in read_records(run / "steps.jsonl"):
        assert sum(record["phases"].values()) == pytest.approx(record["seconds"], abs=1e-9)


def test_report_and_evaluate_agree_with_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    trained = {record["split"]: record["loss"] for record in read_records(run / "evals.jsonl")}
    assert f'"loss": {trained["validation"]!r}' in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "index.html").is_file()
    assert {path.name for path in (run / "report").glob("*.png")} >= {"loss.png", "learning_rate.png", "time.png"}


def test_verify_names_the_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    model = run / "checkpoints" / "step-00000429" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    try:
        assert main(["verify", str(run)]) == 74
        assert "step-00000429: model.safetensors" in capsys.readouterr().out
    finally:
        model.write_bytes(whole)
