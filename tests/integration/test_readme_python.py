"""The README's examples in Python, run from the packages as a wheel holds them, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import doctest, sys
from pathlib import Path
import pipeline, stepsize, trainer
result = doctest.testfile(sys.argv[1], module_relative=False)
inside = all(Path(package.__file__).is_relative_to(sys.argv[2]) for package in (pipeline, stepsize, trainer))
print(result.failed, result.attempted > 8, inside)
"""


def test_the_examples_run_from_what_is_packaged(small_data: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "site"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(ROOT / package, wheel / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(small_data)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "README.md"), str(wheel)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["0 True True"], done.stdout + done.stderr
