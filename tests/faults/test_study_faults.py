"""A study on a full disk, or killed while it writes its report: each file is whole or not there, and it goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepsize.suite.report import score, write_suite_report
from tests.faults.small_disk import PAGE, fill, small_file_system
from tests.faults.small_run import small_run
from tests.finished_runs import TINY, all_runs
from tests.logs import folder_bytes
from tests.synthetic_study import write_result
from trainer.cli import main
from trainer.study.definition import RESOLVED, read_study

SEVERAL = """
[data]
path = "DATA"
[study]
[[study.arm]]
name = "base"
set = { "optimizer.lr" = [1e-3, 1e-2] }
"""
ARM = """
[study]
[[study.arm]]
name = "a"
set = { "optimizer.lr" = [0.001, 0.01] }
"""


class Killed(BaseException):
    """In place of a signal that cannot be caught."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", mebibytes=4) as disk:
        yield disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose runs are made and that has no report; to be copied."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(SEVERAL, encoding="utf-8")
    study, out = read_study(folder / "study.toml").unfold(), folder / "made"
    for number, run in enumerate(study.runs):
        write_result(out, run, 0.5 + 0.01 * number)
    (out / RESOLVED).write_text(study.to_toml(), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, bytes]:
    """The files of its report."""
    out = made.with_name("whole")
    shutil.copytree(made, out)
    write_report(out)
    return reported(out)


def reported(folder: Path) -> dict[str, bytes]:
    return {name: held for name, held in folder_bytes(folder).items() if "/" not in name and name != "ballast"}


def write_report(folder: Path) -> None:
    assert main(["report", str(folder)]) == 0


def write_suite(folder: Path) -> None:
    lookup = all_runs([TINY], lambda planned: (0.5 + planned.rate / 100, 0.6), seeds=2, methods=("auto", "cosine"))
    write_suite_report(folder, score([TINY], ("auto", "cosine"), 2, lookup), tasks=[TINY], skipped={})


@pytest.mark.parametrize("write", [write_report, write_suite])
def test_a_report_that_is_killed_leaves_whole_files_and_its_page_last(
    write: Callable[[Path], None], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync = tmp_path / "out", os.fsync
    shutil.copytree(made, out)
    write(out)
    whole, left = reported(out), -1
    names = [name for name in whole if name.endswith((".png", ".csv", ".html"))]
    assert {Path(name).suffix for name in names} == {".png", ".csv", ".html"}

    def kill(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        fsync(file)

    monkeypatch.setattr(os, "fsync", kill)
    for calls in (1, len(names) - 1):
        shutil.rmtree(out)
        shutil.copytree(made, out)
        left = calls
        with pytest.raises(Killed):
            write(out)
        found = reported(out)
        assert {name: found[name] for name in names if name in found} == {
            name: whole[name] for name in names if name in found
        }
        assert "index.html" not in found
    left = 10**6
    write(out)
    assert {name: held for name, held in reported(out).items() if name in whole} == whole


@pytest.mark.parametrize("pages", [0, 40])
def test_a_report_that_does_not_fit_leaves_what_was_there(
    pages: int, made: Path, whole: dict[str, bytes], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk / "out"
    shutil.copytree(made, out)
    ballast = fill(disk, leave_bytes=pages * PAGE)
    assert main(["report", str(out)]) == 74
    said = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in said[-1]
    assert str(out) in said[-1]
    left = reported(out)
    assert set(left) <= set(whole)
    assert {name: held for name, held in left.items() if name.endswith((".png", ".csv"))} == {
        name: whole[name] for name in left if name.endswith((".png", ".csv"))
    }
    ballast.unlink()
    write_report(out)
    assert reported(out).keys() == whole.keys()


def test_the_suite_leaves_nothing_beside_what_does_not_fit(disk: Path) -> None:
    ballast = fill(disk, leave_bytes=4 * PAGE)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_suite(disk)
    assert raised.value.filename
    names = sorted(reported(disk))
    assert not [name for name in names if name.startswith(".")]
    ballast.unlink()
    write_suite(disk)
    assert set(names) <= reported(disk).keys()


@pytest.mark.parametrize("pages", [0, 60])
def test_a_study_whose_disk_is_full_ends_in_a_line_and_the_same_command_goes_on(
    pages: int, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run(tmp_path)
    config.write_text(config.read_text().replace("keep_best = false", "final_retry_seconds = 0.0") + ARM)
    command = ["study", str(config), "--out", str(disk / "study")]
    ballast = fill(disk, leave_bytes=pages * PAGE)
    assert main(command) == 74
    said = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in said[-1]
    assert not [line for line in said if "Traceback" in line]
    ballast.unlink()
    assert main(command) == 0
    assert "2 finished" in capsys.readouterr().err
