"""Help and usage errors come at once: nothing heavy is imported before work begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from trainer.cli.entry import VERBS

HEAVY = ("torch", "numba", "numpy", "pyarrow", "matplotlib", "pandas")
SCRIPT = f"""
import contextlib, io, json, sys
from trainer.cli import main
found = {{}}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    found[" ".join(arguments)] = [code, *(name for name in {HEAVY!r} if name in sys.modules)]
print(json.dumps(found))
"""


def loaded(commands: list[list[str]], folder: Path) -> dict[str, list[int | str]]:
    """By command its exit code and what of HEAVY it or one before it imported, in one process for all of them.

    Nothing, then, is what each imports alone.
    """
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    found = loaded([["--help"], *([verb, "--help"] for verb in VERBS)], tmp_path)
    assert found == {"--help": [0]} | {f"{verb} --help": [0] for verb in VERBS}


def test_what_is_heavy_is_seen(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    (tmp_path / "trainer" / "cli.py").write_text("def main(arguments):\n    import numpy\n    return 0\n")
    assert loaded([["--help"]], tmp_path) == {"--help": [0, "numpy"]}


def test_a_usage_error_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[budget]\nsteps = 3\n")
    study = "[budget]\nsteps = 3\n[study]\n[[study.arm]]\nname = 'only'\n"
    (tmp_path / "study.toml").write_text(study)
    required = {
        "train": ["run.toml", "--run", "RUN"],
        "stall": ["run.toml"],
        "study": ["study.toml", "--out", "OUT"],
        "preprocess": ["log.tsv", "--out", "OUT"],
    }
    found = loaded([[verb, *required.get(verb, []), "--optionless"] for verb in VERBS], tmp_path)
    assert list(found.values()) == [[2]] * len(VERBS), found


def test_a_refused_configuration_imports_nothing_heavy(tmp_path: Path) -> None:
    lines = ["budget.step = 3", "optimizer.name = 'sdg'", "data.batch_rows = 'many'"]
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.toml").write_text(f"{line}\n")
    found = loaded([["train", f"{number}.toml", "--run", "RUN"] for number in range(len(lines))], tmp_path)
    assert list(found.values()) == [[2]] * len(lines), found
