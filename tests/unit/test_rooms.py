"""The layout: rooms with faces, in the order that import-linter holds, none of them crowded."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "stepsize", "trainer", "ops")
MOST_BESIDE, MOST_IN_A_ROOM, MOST_LINES = 8, 12, 400
SAME_MEANING = {"alpha_bins", "sentences"}
"""Public names that two modules define for the same thing: of the live page and the report, of a run and a study."""


def modules(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def rooms(root: Path) -> set[str]:
    """Dotted names of the folders of pipeline, stepsize and trainer that hold modules."""
    folders = (path.parent.relative_to(root) for path in modules(root))
    return {".".join(folder.parts) for folder in folders if len(folder.parts) == 2 and folder.parts[0] != "ops"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module that `path` imports, also within functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def imports_past_faces(root: Path) -> list[str]:
    """Imports of a room's module (`pipeline.rows.reader`) by a file outside that room."""
    known = rooms(root)
    found: dict[str, None] = {}  # in order, a line once
    for path in modules(root):
        home = ".".join(path.relative_to(root).parts[:2])
        for line, name in imported(path):
            room, _, inside = ".".join(name.split(".")[:3]).rpartition(".")
            target = Path(root, *room.split("."), inside)
            is_module = target.with_suffix(".py").is_file() or target.is_dir()
            if room in known and room != home and is_module:
                found[f"{path.relative_to(root)}:{line} imports {room}.{inside}"] = None
    return list(found)


def test_nothing_imports_past_the_face_of_a_room() -> None:
    assert imports_past_faces(ROOT) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from pipeline.rows.reader import RowReader",
        "import pipeline.rows.reader",
        "from pipeline.rows import reader",
        "def later():\n    from stepsize.measuring.curvature import summarize",
    ],
)
def test_an_import_past_a_face_is_found(tmp_path: Path, statement: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / "trainer" / "step.py"
    planted.write_text(planted.read_text(encoding="utf-8") + f"\n{statement}\n", encoding="utf-8")
    assert [line.split(":")[0] for line in imports_past_faces(tmp_path)] == ["trainer/step.py"]


@pytest.mark.parametrize(
    "planted",
    [
        {
            "pipeline/shards/planted.py": ("import pipeline.rows", "rooms of pipeline"),
            "pipeline/rows/planted.py": ("import torch", "torch in pipeline.device alone"),
            "stepsize/policies/planted.py": ("import stepsize.measuring", "rooms of stepsize"),
            "trainer/learner/planted.py": ("import trainer.loop", "rooms of trainer"),
        },
        {"pipeline/planted.py": ("", "rooms of pipeline")},
    ],
    ids=["order, torch, siblings and spine", "a module outside the rooms"],
)
def test_import_linter_refuses_what_the_order_forbids(tmp_path: Path, planted: dict[str, tuple[str, str]]) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, (statement, _) in planted.items():
        (tmp_path / file).write_text(f"{statement}\n", encoding="utf-8")
    # -c puts the working directory first on the path, so that the copy is what is looked at
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    ended = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    kept_or_broken = [line for line in ended.stdout.splitlines() if line.endswith(("KEPT", "BROKEN"))]
    found = [line for line in kept_or_broken if line.endswith("BROKEN")]
    for _, broken in planted.values():
        assert [line for line in found if line.startswith(broken)], ended.stdout


def test_no_room_is_crowded() -> None:
    for package in PACKAGES:
        beside = [path.name for path in (ROOT / package).glob("*.py")]
        assert len(beside) <= MOST_BESIDE, f"{package}: {beside}"
    for room in rooms(ROOT):
        files = [path.name for path in Path(ROOT, *room.split(".")).glob("*.py")]
        assert len(files) <= MOST_IN_A_ROOM, f"{room}: {files}"
    for path in modules(ROOT):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path


def test_every_room_says_what_it_is_for() -> None:
    for room in rooms(ROOT):
        face = ast.parse(Path(ROOT, *room.split("."), "__init__.py").read_text(encoding="utf-8"))
        sentence = ast.get_docstring(face)
        assert sentence, room
        assert sentence.splitlines()[0].endswith("."), room


def public_names(root: Path) -> dict[str, list[str]]:
    """Every public class and function at the top of a module, with the modules that define it."""
    found: dict[str, list[str]] = {}
    for path in modules(root):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.ClassDef, ast.FunctionDef)
        names = {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}
        for name in names:
            found.setdefault(name, []).append(str(path.relative_to(root)))
    return found


def test_no_two_public_names_differ_by_their_place_alone() -> None:
    found = public_names(ROOT)
    assert "Order" in found
    several = {name: places for name, places in found.items() if len(places) > 1}
    assert several.keys() == SAME_MEANING, several
