"""model.precision from the configuration to what a run leaves: exact to the bit, refused where it cannot be, said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

import pytest

from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records

SETTINGS = """dropout = 0.5
precision = "bfloat16"
[budget]
steps = 60
[stepsize]
policy = "{policy}"
interval = 20
count = 4
start = 5
[optimizer]
average = "{average}"
[eval]
every_steps = 25
rows = 256
[checkpoint]
every_steps = 20
"""
SHORT = "[budget]\nsteps = 6\n[eval]\nrows = 256\n"


@pytest.fixture
def write(tmp_path: Path, small_data: Path) -> Callable[[str], Path]:
    """A configuration whose text begins within [model]."""

    def written(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(
            f'[data]\npath = "{small_data}"\nbatch_rows = 64\n[metrics]\nport = -1\n[model]\ntable_rows = 2048\n{text}'
        )
        return path

    return written


@pytest.mark.parametrize(
    ("policy", "average", "table"),
    [("auto", "none", "dense"), ("auto", "none", "lazy"), ("median_hold", "ema", "lazy")],
)
def test_a_bfloat16_run_goes_on_bit_for_bit(
    write: Callable[[str], Path], tmp_path: Path, policy: str, average: str, table: str
) -> None:
    config = write(SETTINGS.format(policy=policy, average=average))

    def train(run: Path) -> Path:
        assert main(["train", str(config), "--run", str(run), "--optimizer.table", table]) == 0
        return run

    whole = train(tmp_path / "whole")
    tensors, steps, estimates = lasting(whole)
    assert len(steps) == 60
    assert estimates
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "step-00000060")  # as a kill after step 40's checkpoint could have left it
    found = lasting(train(cut))
    assert found[1] == steps
    assert found[2] == estimates
    assert same_bits(found[0], tensors)


def test_evaluations_are_in_float32_and_the_same_whoever_makes_them(
    write: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights by a configuration that never heard of the precision answer the same."""
    run = tmp_path / "run"
    assert main(["train", str(write(f'precision = "bfloat16"\n{SHORT}')), "--run", str(run)]) == 0
    [trained] = [line for line in read_records(run / "evals.jsonl") if line["split"] == "validation"]
    text = (run / "config.toml").read_text()
    assert 'precision = "bfloat16"' in text
    for settings in (text, text.replace('precision = "bfloat16"', 'precision = "float32"', 1)):
        (run / "config.toml").write_text(settings)
        capsys.readouterr()
        assert main(["evaluate", str(run), "--rows", "256", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["loss"] == trained["loss"]


def test_bfloat16_is_another_run_and_tf32_without_a_gpu_the_same_which_is_said_once(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write(SHORT)
    losses = {}
    for name in ("float32", "tf32", "bfloat16"):
        run = tmp_path / name
        assert main(["train", str(config), "--run", str(run), "--model.precision", name]) == 0
        losses[name] = [line["loss"] for line in read_records(run / "steps.jsonl")]
        said = capfd.readouterr().err
        assert said.count('model.precision is "tf32"') == (name == "tf32")
    assert losses["tf32"] == losses["float32"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=2**-8)  # of the same weights


def test_alpha_is_measured_in_the_precision_of_training(write: Callable[[str], Path], tmp_path: Path) -> None:
    """So asking for bfloat16 in measuring changes a float32 run's estimates, and a bfloat16 run's not by a bit."""
    found = {}
    for trained in ("float32", "bfloat16"):
        config = write(f'precision = "{trained}"\n[stepsize]\ninterval = 3\ncount = 3\n{SHORT}')
        for measured in ("float32", "bfloat16"):
            run = tmp_path / f"{trained}-{measured}"
            asked = ["--stepsize.measuring.precision", measured]
            assert main(["train", str(config), "--run", str(run), *asked]) == 0
            found[trained, measured] = list(read_records(run / "alpha.jsonl"))
    assert len(found["bfloat16", "float32"]) == 6
    assert found["bfloat16", "float32"] == found["bfloat16", "bfloat16"]
    assert found["float32", "float32"] != found["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('precision = "float16"\n', "model.precision"),
        ('precision = "bfloat16"\n[stepsize.measuring]\nmethod = "secant"\n', "stepsize.measuring.method"),
        ('precision = "tf32"\n[stepsize.measuring]\nmethod = "secant"\n', "model.precision is 'tf32'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: str, message: str
) -> None:
    assert main(["train", str(write(settings)), "--run", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_secant_that_is_never_taken_stands_in_no_ones_way(write: Callable[[str], Path], tmp_path: Path) -> None:
    settings = 'precision = "bfloat16"\n[stepsize]\npolicy = "none"\n[stepsize.measuring]\nmethod = "secant"\n'
    assert main(["train", str(write(settings + SHORT)), "--run", str(tmp_path / "run")]) == 0


def test_a_continued_run_keeps_its_precision(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, run = write(SHORT), tmp_path / "run"
    assert main(["train", str(config), "--run", str(run)]) == 0
    capfd.readouterr()
    assert main(["train", str(config), "--run", str(run), "--model.precision", "bfloat16"]) == 2
    assert "model.precision" in capfd.readouterr().err


def test_help_has_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["train", "--help"]))
    assert "--model.precision" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
def test_stall_honours_it(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    config = write("[budget]\nsteps = 100\n")
    assert main(["stall", str(config), "--model.precision", name, "--steps", "12", "--warmup-steps", "2"]) == 0
    assert capfd.readouterr().err.count('model.precision is "tf32"') == (name == "tf32")


@pytest.mark.timeout(600)
def test_auto_finds_its_rate_on_real_rows_in_either_precision(real_data: Path, tmp_path: Path) -> None:
    """From a first guess a thousand times too small: the rates it comes to, and the loss they lead to."""
    data = tmp_path / "data"
    assert main(["preprocess", str(real_data / "criteo_kaggle_137139.tsv.gz"), "--out", str(data)]) == 0
    config = tmp_path / "config.toml"
    config.write_text(
        f'[data]\npath = "{data}"\nbatch_rows = 256\n[optimizer]\nlr = 1e-5\n[stepsize]\npolicy = "auto"\n'
        '[budget]\nsteps = 160\n[eval]\nsplits = ["validation"]\n[metrics]\nport = -1\n'
    )
    rates, losses = [], []
    for name in ("float32", "bfloat16"):
        run = tmp_path / name
        assert main(["train", str(config), "--run", str(run), "--model.precision", name]) == 0
        steps = list(read_records(run / "steps.jsonl"))
        rates.append(geometric_mean(step["learning_rate"] for step in steps[40:120]))
        losses.append(next(iter(read_records(run / "evals.jsonl")))["loss"])
    assert rates[0] > 1e-3
    assert rates[1] == pytest.approx(rates[0], rel=0.1)
    assert losses[0] < 0.5
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
