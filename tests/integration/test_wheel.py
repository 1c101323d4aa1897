"""The wheel of the whole project holds all of it, and what the README shows in Python runs from it, far from here."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ops", "pipeline", "stepsize", "trainer")
OF_STEPSIZE_ALONE = {"stepsize/pyproject.toml", "stepsize/LICENSE"}
DOCTESTS = """
import doctest, importlib, sys
result = doctest.testfile(sys.argv[1], module_relative=False)
files = [importlib.import_module(name).__file__ for name in sys.argv[2:]]
print(result.failed, result.attempted > 8, *files, sep="|")
"""


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout, whose files could be listed")
    tree = {name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()} - OF_STEPSIZE_ALONE
    assert {"trainer/py.typed", "trainer/report/templates/page.html", "ops/dashboards/alphastream.json"} <= tree
    assert held.keys() == tree
    assert [name for name in tree if held[name] != (ROOT / name).read_bytes()] == []


def test_what_it_requires_is_what_the_project_does(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")
        ]
        licenses = [archive.read(name) for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert licenses == [(ROOT / "LICENSE").read_bytes()]
    assert metadata.count("Requires-Dist: ") >= len(project["dependencies"])
    assert {f"Provides-Extra: {name}" for name in project["optional-dependencies"]} <= set(metadata.splitlines())


def test_the_examples_of_the_readme_run(from_the_wheel: Callable[..., str], installed: Path) -> None:
    output = from_the_wheel("-c", DOCTESTS, str(ROOT / "README.md"), *PACKAGES)
    failed, enough, *files = output.splitlines()[-1].split("|")
    assert (failed, enough) == ("0", "True"), output
    assert [Path(file).parent for file in files] == [installed / name for name in PACKAGES]


def test_the_command_is_installed(from_the_wheel: Callable[..., str], installed: Path) -> None:
    command = installed / "bin" / "alphastream"
    assert "preprocess" in from_the_wheel(str(command), "--help")
