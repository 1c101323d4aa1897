"""Machine code that is kept between processes is never older than any file it was made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.small_disk import PAGE, fill, small_file_system

ROOT = Path(__file__).resolve().parents[3]
CALLER = """
from pipeline.compiled import compiled
from mine.constants import STEP
from mine.callee import twice

@compiled
def work(x):
    return twice(x) + STEP
"""
CALLEE = """
from pipeline.compiled import compiled
from mine.deeper import shift

@compiled
def twice(x):
    return 2 * x + shift(x)
"""
DEEPER = """
from pipeline.compiled import inlined

@inlined
def shift(x):
    return 0
"""
PROGRAM = """
import numba.core.event
from mine.caller import work

compiled = []
class Listener(numba.core.event.Listener):
    def on_start(self, event):
        compiled.append(event)
    def on_end(self, event):
        pass
with numba.core.event.install_listener("numba:compile", Listener()):
    result = work(10)
print(result, bool(compiled))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """`mine`, whose function `work` has code and a constant of other files compiled into it."""
    package = tmp_path / "mine"
    package.mkdir()
    for name, source in {"caller": CALLER, "callee": CALLEE, "deeper": DEEPER, "constants": "STEP = 1\n"}.items():
        (package / f"{name}.py").write_text(source)
    (package / "__init__.py").touch()
    return package


def call(package: Path, **environment: str) -> tuple[int, bool]:
    """`work(10)` in a process of its own, and whether anything was compiled for it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    known = inherited | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(package.parent)])} | environment
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM], env=known, cwd=package.parent, capture_output=True, text=True, check=True
    )
    result, compiled = done.stdout.split()
    return int(result), compiled == "True"


def test_a_change_in_any_file_that_went_in_compiles_anew(package: Path) -> None:
    assert call(package) == (21, True)
    assert call(package) == (21, False)
    result = 0
    for name, before, after, result in (
        ("callee", "2 * x", "3 * x", 31),
        ("deeper", "return 0", "return 5", 36),
        ("constants", "STEP = 1", "STEP = 2", 37),
    ):
        path = package / f"{name}.py"
        path.write_text(path.read_text().replace(before, after))
        assert call(package) == (result, True)
    assert call(package) == (result, False)


def test_without_a_folder_for_it_machine_code_is_not_kept_and_works(package: Path) -> None:
    (package / "__pycache__").write_text("no folder can be made here")
    nowhere = {"HOME": str(package / "caller.py"), "XDG_CACHE_HOME": str(package / "caller.py")}
    for _ in range(2):
        assert call(package, **nowhere) == (21, True)


def test_a_full_disk_costs_compiling_alone(package: Path, tmp_path: Path) -> None:
    """numba itself raises what keeps it from writing, from the first call of the function."""
    with small_file_system(tmp_path / "small", mebibytes=1) as disk:
        full = Path(shutil.copytree(package, disk / "mine"))
        ballast = fill(disk, leave_bytes=2 * PAGE)
        for _ in range(2):
            assert call(full) == (21, True)
        ballast.unlink()
        assert call(full) == (21, True)
        assert call(full) == (21, False)
