"""Studies that are programs: named in the verb's help, with a help and an example of their own, first or not at all."""

from __future__ import annotations

import re

import pytest

from trainer.cli import main
from trainer.cli.studies.programs import PROGRAMS


def test_the_verbs_help_names_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "900")
    assert main(["study", "--help"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "studies are programs" in line]
    for name in PROGRAMS:
        assert re.search(rf"\b{name} (measures|checks|tries)", line), name


@pytest.mark.parametrize("name", ["cost", "sanity"])
def test_each_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: alphastream study {name}" in shown
    assert f"Example: alphastream study {name}" in shown


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_they_come_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--out", "DIR", name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"write alphastream study {name} first" in line
