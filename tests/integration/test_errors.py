"""What a user can get wrong: one clear line on standard error, and the contract's exit code."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.logs import write_log
from trainer.cli import main

GOOD = b"1\t" + b"\t".join(b"%d" % i for i in range(13)) + b"\t" + b"\t".join(b"%08x" % i for i in range(26)) + b"\n"


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command and asserts its exit code and that its error is one line that names each of `said`."""

    def run(arguments: list[str], *said: str, code: int = 2) -> None:
        capfd.readouterr()
        assert main(arguments) == code
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("alphastream: ")]
        assert len(lines) == 1
        for word in said:
            assert word in lines[0]

    return run


def test_wrong_path(fails: Callable[..., None], tmp_path: Path) -> None:
    fails(["preprocess", str(tmp_path / "nowhere.tsv"), "--out", str(tmp_path / "out")], "nowhere.tsv")
    assert not (tmp_path / "out").exists()


def test_empty_file(fails: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").touch()
    fails(["preprocess", str(tmp_path / "empty.tsv"), "--out", str(tmp_path / "out")], "empty.tsv", "empty")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD.replace(b"\t00000019", b""), "39 fields"),
        (GOOD.replace(b"\t00000007", b"\tnot-hex!"), "hex"),
    ],
)
def test_bad_line(fails: Callable[..., None], tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "day.tsv").write_bytes(GOOD * 3 + line + GOOD * 3)
    fails(["preprocess", str(tmp_path / "day.tsv"), "--out", str(tmp_path / "out")], "day.tsv", ":4", reason)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_truncated_gzip(fails: Callable[..., None], tmp_path: Path) -> None:
    whole = gzip.compress(GOOD * 1000)
    (tmp_path / "day.tsv.gz").write_bytes(whole[: len(whole) // 2])
    fails(["preprocess", str(tmp_path / "day.tsv.gz"), "--out", str(tmp_path / "out")], "day.tsv.gz", "truncated")


def test_unknown_key_names_the_nearest(
    fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config("[budget]\nstep = 3")
    fails(["train", str(config), "--run", str(tmp_path / "run")], "config.toml", "budget.step", "budget.steps")
    assert not (tmp_path / "run").exists()


def test_wrong_type(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config('[budget]\nsteps = "many"')
    fails(["train", str(config), "--run", str(tmp_path / "run")], "budget.steps is 'many'; give a whole number")


def test_unknown_option(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config("[budget]\nsteps = 3")
    fails(["train", str(config), "--run", str(tmp_path / "run"), "--data.bach_rows", "3"], "data.bach_rows")


def test_data_that_is_no_data(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config("[budget]\nsteps = 3")
    fails(["train", str(config), "--run", str(tmp_path / "run"), "--data.path", str(tmp_path)], "manifest.json")


def test_used_port(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config("[budget]\nsteps = 3")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        fails(["train", str(config), "--run", str(tmp_path / "run"), "--metrics.port", port], port, "metrics.port")
        assert not (tmp_path / "run").exists(), "of a run that did not begin nothing stays"
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "notes.txt").touch()
        fails(["train", str(config), "--run", str(tmp_path / "made"), "--metrics.port", port], port)
        assert (tmp_path / "made" / "notes.txt").exists()


def test_a_web_config_that_cannot_be_used(
    fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config: 7\n")
    config, asked = write_config("[budget]\nsteps = 3"), ["--metrics.port", "0", "--metrics.web_config", str(web)]
    fails(["train", str(config), "--run", str(tmp_path / "run"), *asked], str(web))
    fails(["train", str(config), "--run", str(tmp_path / "other"), "--from-checkpoint", "5"], "no checkpoint of step 5")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "other").exists()


def test_changed_configuration(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, run = write_config("[budget]\nsteps = 3"), str(tmp_path / "run")
    assert main(["train", str(config), "--run", run]) == 0
    fails(["train", str(config), "--run", run, "--data.seed", "5"], "data.seed", "5")


def test_unknown_verb(fails: Callable[..., None]) -> None:
    fails(["trian"], "trian", "train")


def test_missing_arguments(fails: Callable[..., None]) -> None:
    fails(["train"], "--run")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--model.table_rows", "2000000000"], "model.table_rows = 2000000000"),
        (["--budget.target_loss", "0.4", "--eval.splits", "test"], "budget.target_loss"),
        (["--budget.steps", "None", "--budget.seconds", "5"], "schedule.steps"),
        (["--data.batch_rows", "9000"], "data.batch_rows"),
        (["--data.seed", "-1"], "data.seed"),
        (["--budget.epochs", "inf"], "budget.epochs"),
        (["--metrics.host", "no.such.host", "--metrics.port", "0"], "metrics.host"),
    ],
)
def test_settings_that_cannot_work(
    fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path, overrides: list[str], said: str
) -> None:
    config = write_config("[budget]\nsteps = 3")
    fails(["train", str(config), "--run", str(tmp_path / "run"), *overrides], said)
    assert not (tmp_path / "run").exists()


def test_evaluating_what_is_no_run(fails: Callable[..., None], tmp_path: Path) -> None:
    fails(["evaluate", str(tmp_path)], str(tmp_path), "not a run directory")


def test_evaluating_no_rows(fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, run = write_config("[budget]\nsteps = 1"), str(tmp_path / "run")
    assert main(["train", str(config), "--run", run]) == 0
    fails(["evaluate", run, "--rows", "0"], "eval.rows is 0")


def test_evaluating_on_rows_encoded_otherwise(
    fails: Callable[..., None], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, run, other = write_config("[budget]\nsteps = 1"), str(tmp_path / "run"), str(tmp_path / "other")
    assert main(["train", str(config), "--run", run]) == 0
    log = str(write_log(tmp_path / "log.tsv", 50))
    assert main(["preprocess", log, "--out", other, "--bucket-sizes", "1000"]) == 0
    fails(["evaluate", run, "--data", other], other, "other columns or bucket sizes")


def test_the_path_of_the_data_may_come_from_the_command_line(
    fails: Callable[..., None], tmp_path: Path, small_data: Path
) -> None:
    config, run = tmp_path / "config.toml", str(tmp_path / "run")
    config.write_text("[budget]\nsteps = 1\n[model]\ntable_rows = 2048\n[metrics]\nport = -1\n")
    fails(["train", str(config), "--run", run], "data.path is missing")
    assert main(["train", str(config), "--run", run, "--data.path", str(small_data)]) == 0
