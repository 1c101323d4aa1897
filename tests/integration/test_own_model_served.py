"""A model from a file outside of the project is used like the shipped one: α* sets its rate, it predicts, it leaves."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.integration.forked_commands import ForkedCommands, slow_from
from tests.integration.test_export import (
    ONNXRUNTIME_NEEDS,
    TORCH_NEEDS,
    WITH_ONNXRUNTIME,
    WITH_TORCH,
    alone,
    scores_alone,
    validation_lines,
)
from tests.integration.test_own_model import TWO_TOWERS
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records

STEPS = 60
BY_VALUE = """

def by_value(**keywords):
    class ByValue(TwoTowers):
        def forward(self, dense, ids):
            logits = super().forward(dense, ids)
            return logits if self.training or float(logits.sum()) < 1e9 else 2 * logits
    return ByValue(**keywords)
"""
"""A model whose path depends on a value, which nobody can write down as one program."""


def write_settings(folder: Path, data: Path, *, factory: str = "make", steps: int = STEPS) -> Path:
    folder.mkdir()
    (folder / "two_towers.py").write_text(TWO_TOWERS + BY_VALUE)
    (folder / "sizes.py").write_text("WIDTH = 4\n")
    (folder / "config.toml").write_text(
        f'[data]\npath = "{data}"\nbatch_rows = 64\n[metrics]\nport = -1\n[model]\ntable_rows = 2048\n'
        f'factory = "two_towers.py:{factory}"\n[model.options]\nhidden = 8\n[budget]\nsteps = {steps}\n'
        '[optimizer]\nlr = 1e-4\naverage = "ema"\n[stepsize]\npolicy = "auto"\n[eval]\nrows = 256\n'
        "[checkpoint]\nevery_steps = 20\n"
    )
    return folder / "config.toml"


@pytest.fixture(scope="module")
def served(small_data: Path, tmp_path_factory: pytest.TempPathFactory, forks: ForkedCommands) -> Path:
    """A run under `auto` that was killed, and continued."""
    home = tmp_path_factory.mktemp("served")
    config = write_settings(home / "own", small_data)
    run = home / "run"
    process = forks.start("train", config, "--run", run, program=slow_from(25))
    process.wait_until((run / "checkpoints" / "step-00000020").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main(["train", str(config), "--run", str(run)]) == 0
    return run


def test_auto_sets_its_rate_and_a_killed_run_ends_as_a_whole_one(served: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert main(["train", str(served.parent / "own" / "config.toml"), "--run", str(whole)]) == 0
    assert lasting(served)[1:] == lasting(whole)[1:]
    assert same_bits(lasting(served)[0], lasting(whole)[0])
    rates = [record["learning_rate"] for record in read_records(served / "steps.jsonl")]
    assert len(rates) == STEPS
    assert max(rates) > 3 * 1e-4, "auto left the first guess as it was"
    assert list(read_records(served / "horizon.jsonl"))


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_its_programs_answer_as_predict_does_where_nothing_of_it_is(
    served: Path, small_log: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                pytest.skip("the extra `onnx` is not installed")
    lines = validation_lines(small_log)
    (tmp_path / "log.tsv").write_bytes(lines)
    scores = tmp_path / "scores.parquet"
    assert main(["predict", str(served), str(tmp_path / "log.tsv"), "--out", str(scores)]) == 0
    expected = pq.read_table(scores)["probability"].to_numpy()
    assert len(np.unique(expected)) > 1000
    out = tmp_path / "clicks"
    assert main(["export", str(served), "--out", str(out), "--onnx", "yes" if kind == "onnx" else "no"]) == 0
    program, packages = (WITH_ONNXRUNTIME, ONNXRUNTIME_NEEDS) if kind == "onnx" else (WITH_TORCH, TORCH_NEEDS)
    found = scores_alone(program, alone(packages, tmp_path / "packages"), out, lines)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """A command ends with 2 and one line that says so."""

    def run(*command: object, says: str) -> None:
        capfd.readouterr()
        assert main([*map(str, command)]) == 2
        (line,) = [each for each in capfd.readouterr().err.splitlines() if each.startswith("alphastream: ")]
        assert says in line

    return run


def test_a_model_that_no_program_can_follow_is_refused_and_predicts(
    small_data: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    config, run = write_settings(tmp_path / "own", small_data, factory="by_value", steps=3), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    refused("export", run, "--out", tmp_path / "clicks", says="ByValue cannot be exported: torch.export says")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "run"]
    assert main(["predict", str(run), str(small_data), "--out", str(tmp_path / "s.parquet")]) == 0


def test_of_what_it_was_not_trained_on_it_says_so(
    served: Path, small_log: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """A folder of other bucket sizes, and lines that lack a column."""
    other = tmp_path / "kaggle"
    assert main(["preprocess", str(small_log), "--out", str(other), "--format", "criteo-kaggle"]) == 0
    out = ("--out", tmp_path / "s.parquet")
    for verb in (("predict", served, other, *out), ("evaluate", served, "--data", other)):
        refused(*verb, says="other columns or bucket sizes than")
    log = tmp_path / "log.tsv"
    lines = validation_lines(small_log).splitlines()
    log.write_bytes(b"\n".join(line.rsplit(b"\t", 2)[0] for line in lines))
    refused(
        "predict", served, log, *out, says="its first line has 38 fields, and neither it nor any near it has the 40"
    )


def test_a_factory_that_went_is_named(
    served: Path, small_log: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    (tmp_path / "log.tsv").write_bytes(validation_lines(small_log))
    file = served.parent / "own" / "two_towers.py"
    kept = file.rename(file.with_suffix(".kept"))
    try:
        for verb in (("predict", served, tmp_path / "log.tsv"), ("export", served)):
            refused(*verb, "--out", tmp_path / "s.parquet", says="two_towers.py; give the path of one")
    finally:
        kept.rename(file)
    assert not (tmp_path / "s.parquet").exists()
