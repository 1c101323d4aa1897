"""A run whose table is kept by rows leaves what the same run with a dense table leaves, whoever continues whose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resume import lasting, same_bits
from trainer.cli import main

SETTINGS = """
[budget]
steps = 90
[stepsize]
policy = "auto"
estimators = ["unbiased", "hybrid"]
[eval]
every_steps = 40
rows = 256
[checkpoint]
every_steps = 30
"""


@pytest.mark.parametrize("average", ["none", "ema"])
def test_lazy_and_dense_runs_are_equal_and_continue_one_another(
    write_config: Callable[..., Path], tmp_path: Path, average: str
) -> None:
    config = write_config(f'{SETTINGS}[optimizer]\naverage = "{average}"\n')

    def train(run: Path, table: str) -> Path:
        assert main(["train", str(config), "--run", str(run), "--optimizer.table", table]) == 0
        return run

    def cut(run: Path, name: str) -> Path:
        """A copy that a kill after the checkpoint of step 60 could have left."""
        copied = Path(shutil.copytree(run, tmp_path / name))
        shutil.rmtree(copied / "checkpoints" / "step-00000090")
        return copied

    dense, lazy = train(tmp_path / "dense", "dense"), train(tmp_path / "lazy", "lazy")
    expected = lasting(dense)
    assert len(expected[1]) == 90
    assert expected[2]
    continued = [train(cut(lazy, "a"), "lazy"), train(cut(dense, "b"), "lazy"), train(cut(lazy, "c"), "dense")]
    for run in (lazy, *continued):
        tensors, steps, estimates = lasting(run)
        assert steps == expected[1]
        assert estimates == expected[2]
        assert same_bits(tensors, expected[0])


def test_an_optimizer_without_a_lazy_form_is_refused_before_anything_is_written(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config("[budget]\nsteps = 3\n[optimizer]\nname = 'adamw'\n")
    assert main(["train", str(config), "--run", str(tmp_path / "run"), "--optimizer.table", "lazy"]) == 2
    assert "optimizer.table" in (message := capfd.readouterr().err)
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0
