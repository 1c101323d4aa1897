"""Standard streams that are closed, full, broken or of a narrow encoding: one line and the right code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shards import verify_data
from tests.logs import write_log
from tests.tiny_data import write_tiny
from trainer.cli import main

ROOT = Path(__file__).resolve().parents[4]
FULL = "standard output: No space left on device; the work is done, what it printed is lost"
NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def ended(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """How a shell's `command` ends, in which `alphastream` is ours."""
    program = f'alphastream() {{ {shlex.quote(sys.executable)} -m trainer.cli "$@"; }}'
    return subprocess.run(
        ["bash", "-c", f"{program}\n{command}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
    )


def said(run: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines on standard error."""
    return run.stderr.decode("utf-8", "surrogateescape").splitlines()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "day.tsv", 30)


@pytest.mark.parametrize("verb", ["", "sample", "preprocess", "train"])
def test_full_standard_output_is_one_line(verb: str, tmp_path: Path) -> None:
    run = ended(f"alphastream {verb} --help >/dev/full", tmp_path)
    assert (run.returncode, said(run)) == (74, [f"alphastream: {FULL}"])


@pytest.mark.parametrize("verb", ["", "sample", "preprocess", "train"])
def test_closed_streams_change_no_code(verb: str, tmp_path: Path) -> None:
    run = ended(f"alphastream {verb} --optionless <&- >&- 2>&-", tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (2, b"", b"")


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "| true"])
def test_work_is_done_whatever_the_streams_are(streams: str, log: Path, tmp_path: Path) -> None:
    run = ended(f"alphastream preprocess {log.name} --out DATA {streams}", tmp_path)
    assert run.returncode == 0, said(run)
    assert b"Traceback" not in run.stderr
    assert json.loads((tmp_path / "DATA" / "manifest.json").read_text())
    assert verify_data(str(tmp_path / "DATA")).whole


def test_a_result_that_cannot_be_written_is_said_and_the_work_is_done(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(f"alphastream preprocess {log.name} --out DATA --json >/dev/full", tmp_path)
    assert run.returncode == 74
    assert said(run)[-1] == f"alphastream: {FULL}"
    monkeypatch.chdir(tmp_path)
    assert main(["preprocess", log.name, "--out", "DATA", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nothing_to_do"] is True


def test_nobody_reading_is_no_error_of_ours(tmp_path: Path) -> None:
    run = ended("alphastream inspect nowhere --json > >(exec true); echo ${PIPESTATUS[0]}", tmp_path)
    assert b"Traceback" not in run.stderr
    run = ended("set -o pipefail; alphastream --help | (exec <&-; sleep 0.01; true); echo $?", tmp_path)
    assert run.stdout in (b"141\n", b"0\n")  # 0 if the pipe took it all before its reader was gone
    assert run.stderr == b""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nobody_reading_tables_is_no_error_either(options: list[str], log: Path, tmp_path: Path) -> None:
    assert main(["preprocess", str(log), "--out", str(tmp_path / "DATA")]) == 0
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "trainer.cli", "inspect", "DATA", *options]
    with os.fdopen(writer, "wb") as nobody_reads:
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (run.returncode, run.stderr.count(b"Traceback")) == (141, 0)


def test_names_and_words_that_the_locale_lacks_are_escaped(tmp_path: Path) -> None:
    run = ended("alphastream verify $'nowhere-\\xff-α'", tmp_path, **NO_LOCALE)
    assert run.returncode == 2
    assert run.stderr.startswith(b"alphastream: nowhere-\xff-")
    assert len(said(run)) == 1
    run = ended("alphastream train --help", tmp_path, **NO_LOCALE)
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"\\u03b1*" in run.stdout  # α*, in help


def test_a_name_that_is_not_utf8_is_shown_as_it_is(tmp_path: Path) -> None:
    run = ended("alphastream verify $'nowhere-\\xff-α'", tmp_path, LC_ALL="C.UTF-8")
    assert run.stderr.startswith(b"alphastream: nowhere-\xff-\xce\xb1 does not exist")


def test_a_run_whose_name_is_not_utf8_is_refused_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[data]\npath = "DATA"\nbatch_rows = 8\n[budget]\nsteps = 1\n')
    write_tiny(tmp_path / "DATA", {"train": [[64]], "validation": [[16]]})
    run = ended("alphastream train run.toml --run $'RUN-\\xff' --metrics.port -1", tmp_path, LC_ALL="C.UTF-8")
    assert (run.returncode, len(said(run))) == (2, 1), said(run)
    assert run.stderr.startswith(b"alphastream: RUN-\xff: the name is not UTF-8; give another directory")


@pytest.mark.parametrize(
    "command",
    [
        "''",
        "sample ''",
        "preprocess '' --out DATA",
        "preprocess a.tsv --out ''",
        "inspect ''",
        "verify ''",
        "train '' --run RUN",
        "evaluate ''",
        "study '' --out DIR",
        "stall ''",
        "report ''",
        "demo --out ''",
        "inspect '~nobody_x/data'",
        "train '~nobody_x/run.toml' --run RUN",
        "preprocess a.tsv --out DATA --max-rejects ²",
        "preprocess a.tsv --out DATA --workers ²",
    ],
)
def test_odd_arguments_are_one_line_and_two(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(shlex.split(command))
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1), lines
    assert not list(tmp_path.iterdir())
