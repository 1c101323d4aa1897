"""A small generated log, preprocessed once, and the command line called in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.forked_commands import ForkedCommands
from tests.trained import Trained, train_on
from trainer.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generated day of 12,000 lines."""
    folder = tmp_path_factory.mktemp("log")
    assert main(["sample", str(folder), "--rows", "12000", "--seed", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def small_data(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards, in row groups short enough that shuffling crosses several."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    assert main(["preprocess", str(small_log), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkedCommands]:
    """Starts commands that spare themselves the imports."""
    with ForkedCommands() as started:
        yield started


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the whole project, built without a network."""
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into, and nothing else."""
    target = tmp_path_factory.mktemp("installed") / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-compile", "--no-deps", "--no-index", "--target"]
    subprocess.run([*command, str(target), str(wheel)], capture_output=True, text=True, check=True)
    give_compiled(target)
    return target


def give_compiled(target: Path) -> None:
    """Puts the machine code of the checkout beside the same sources. It is found by what they hold, all that they
    import included, and by the time of their file."""
    for package in ("pipeline", "trainer"):
        for code in (ROOT / package).rglob("__pycache__/*.nb[ci]"):
            source = code.parents[1] / f"{code.name.partition('.')[0]}.py"
            installed = target / source.relative_to(ROOT)
            if source.is_file() and installed.is_file():
                times = source.stat()
                os.utime(installed, ns=(times.st_atime_ns, times.st_mtime_ns))
                kept = target / code.relative_to(ROOT)
                kept.parent.mkdir(exist_ok=True)
                shutil.copyfile(code, kept)


@pytest.fixture
def from_the_wheel(installed: Path, small_data: Path, tmp_path: Path) -> Callable[..., str]:
    """Python with these arguments in a folder with nothing but `data`, where the project is the installed wheel; its
    output."""
    (tmp_path / "data").symlink_to(small_data)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def trained(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on the small log as one folder."""
    lines = b"".join(path.read_bytes() for path in sorted(small_log.glob("day_*"))).splitlines()
    return train_on(lines, tmp_path_factory.mktemp("predict"))


@pytest.fixture
def write_config(tmp_path: Path, small_data: Path) -> Callable[..., Path]:
    """A configuration for a quick run on the small log; `text` is further TOML."""

    def write(text: str = "", *, data: str = "batch_rows = 64") -> Path:
        path = tmp_path / "config.toml"
        path.write_text(
            f'[data]\npath = "{small_data}"\n{data}\n[model]\ntable_rows = 2048\n[metrics]\nport = -1\n{text}\n'
        )
        return path

    return write
