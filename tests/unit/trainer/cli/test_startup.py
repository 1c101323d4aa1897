"""Help and usage errors come at once: nothing heavy is imported before work begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli.entry import VERBS

HEAVY = ("torch", "numba", "numpy", "pyarrow", "matplotlib", "pandas")
SCRIPT = f"""
import sys
from trainer.cli import main
code = main(sys.argv[1:])
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("LOADED", code, *loaded)
"""


def loaded(arguments: list[str], folder: Path) -> str:
    """The exit code and what of HEAVY was imported."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("verb", ["--help", *VERBS])
def test_help_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    arguments = [verb] if verb == "--help" else [verb, "--help"]
    assert loaded(arguments, tmp_path) == "LOADED 0"


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_usage_error_imports_nothing_heavy(verb: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[budget]\nsteps = 3\n")
    study = "[budget]\nsteps = 3\n[study]\n[[study.arm]]\nname = 'only'\n"
    (tmp_path / "study.toml").write_text(study)
    required = {
        "train": ["run.toml", "--run", "RUN"],
        "stall": ["run.toml"],
        "study": ["study.toml", "--out", "OUT"],
        "preprocess": ["log.tsv", "--out", "OUT"],
    }
    assert loaded([verb, *required.get(verb, []), "--optionless"], tmp_path) == "LOADED 2"


@pytest.mark.parametrize("line", ["budget.step = 3", "optimizer.name = 'sdg'", "data.batch_rows = 'many'"])
def test_a_refused_configuration_imports_nothing_heavy(line: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"{line}\n")
    assert loaded(["train", "run.toml", "--run", "RUN"], tmp_path) == "LOADED 2"
