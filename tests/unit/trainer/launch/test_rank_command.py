"""Ranks run the command that was given, by the same interpreter, without what is the launcher's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.launch.rank_command import OF_LAUNCHER, same_program, without_options

PROGRAM = """
import json, sys
from trainer.launch.rank_command import same_program
print(json.dumps(same_program("elsewhere", arguments=["train", "x"])))
"""


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["c.toml", "--run", "RUN", "--ranks", "2"], ["c.toml", "--run", "RUN"]),
        (["--ranks=2", "--max_restarts=0", "c.toml"], ["c.toml"]),
        (["--grace-seconds", "3.5", "--run=--ranks", "--max-restarts", "1"], ["--run=--ranks"]),
        (["--budget.steps", "2"], ["--budget.steps", "2"]),
    ],
)
def test_the_launchers_options_are_left_out(given: list[str], left: list[str]) -> None:
    assert without_options(given, OF_LAUNCHER) == left


@pytest.mark.parametrize("as_module", [False, True])
def test_the_program_is_run_again_as_it_was(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    start = ["-m", "program"] if as_module else [str(tmp_path / "program.py")]
    command = [sys.executable, "-W", "ignore", *start, "train", "c.toml", "--ranks", "2"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str([sys.executable, "-W", "ignore", *start, "train", "x"]).replace("'", '"')


def test_within_another_program_the_module_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", "-q"])
    monkeypatch.setattr(sys, "argv", ["/pytest/__main__.py", "-q"])
    assert same_program("trainer.cli", arguments=["train"]) == [sys.executable, "-m", "trainer.cli", "train"]
