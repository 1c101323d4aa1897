"""A run whose table is kept by rows leaves what the same run with a dense table leaves, whoever continues whose."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.equal_tables import differences, preprocessed
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.learner.tables import weight

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"

SETTINGS = """
[budget]
steps = 60
[stepsize]
policy = "auto"
estimators = ["unbiased", "hybrid"]
[eval]
every_steps = 25
rows = 256
[checkpoint]
every_steps = 20
"""


@pytest.mark.parametrize("average", ["none", "ema"])
def test_lazy_and_dense_runs_are_equal_and_continue_one_another(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    config = write_config(f'{SETTINGS}[optimizer]\naverage = "{average}"\n')

    def train(run: Path, table: str) -> Path:
        assert main(["train", str(config), "--run", str(run), "--optimizer.table", table]) == 0
        return run

    def cut(run: Path, name: str) -> Path:
        """A copy that a kill after the checkpoint of step 40 could have left."""
        copied = Path(shutil.copytree(run, tmp_path / name))
        shutil.rmtree(copied / "checkpoints" / "step-00000060")
        return copied

    dense, lazy = train(tmp_path / "dense", "dense"), train(tmp_path / "lazy", "lazy")
    expected = lasting(dense)
    assert len(expected[1]) == 60
    assert expected[2]
    continued = [train(cut(lazy, "a"), "lazy"), train(cut(dense, "b"), "lazy"), train(cut(lazy, "c"), "dense")]
    monkeypatch.setattr(weight, "FEWEST_ROWS", 1)
    for run in (lazy, *continued, train(cut(dense, "d"), "auto")):
        tensors, steps, estimates = lasting(run)
        assert steps == expected[1]
        assert estimates == expected[2]
        assert same_bits(tensors, expected[0])


def test_a_run_of_an_earlier_version_goes_on_the_same_with_either_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "table" not in tomllib.loads((EARLIER / "run" / "config.toml").read_text(encoding="utf-8"))["optimizer"]
    monkeypatch.setattr(weight, "FEWEST_ROWS", 1)
    made: list[object] = []
    keep = weight.LazyTable
    monkeypatch.setattr(weight, "LazyTable", lambda *weights: made.append(weights) or keep(*weights))
    found = []
    for folder, options in (
        ("dense", ["--optimizer.table", "dense"]),
        ("lazy", ["--optimizer.table", "lazy"]),
        ("", []),
    ):
        home = tmp_path / f"of {folder}"
        shutil.copytree(EARLIER, home)
        monkeypatch.chdir(home)
        assert main(["train", "run/config.toml", "--run", "run", *options]) == 0
        assert bool(made) == (folder != "dense")
        found.append(lasting(home / "run"))
        made.clear()
    dense, lazy, default = found
    for tensors, steps, estimates in (lazy, default):
        assert (steps, estimates) == dense[1:]
        assert same_bits(tensors, dense[0])


def test_an_optimizer_without_a_lazy_form_is_refused_before_anything_is_written(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config("[budget]\nsteps = 3\n[optimizer]\nname = 'adamw'\n")
    assert main(["train", str(config), "--run", str(tmp_path / "run"), "--optimizer.table", "lazy"]) == 2
    assert "optimizer.table" in (message := capfd.readouterr().err)
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(("average", "policy", "mutant"), [("ema", "auto", False), ("none", "none", True)])
def test_real_rows_give_the_same_run_and_a_bound_that_is_too_large_does_not(
    real_data: Path, tmp_path: Path, average: str, policy: str, mutant: bool
) -> None:
    data = preprocessed(real_data / "criteo_1tb_day0_10000.tsv.gz", tmp_path)
    settings: dict[str, str | int] = {"preset": "dlrm-tiny", "rows": 64, "steps": 120 if mutant else 60}
    found = list(differences(tmp_path, data, mutant=mutant, average=average, policy=policy, **settings))
    assert bool(found) == mutant, found
