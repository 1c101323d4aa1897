"""A full disk under each verb that writes: one line, 74, nothing half-written; with room the same command ends."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.shards import write_atomically
from tests.faults.small_disk import PAGE, fill, small_file_system
from tests.faults.small_run import small_run
from tests.logs import folder_bytes, write_log
from trainer.cli import main
from trainer.config import load_config
from trainer.console import Console
from trainer.job import run_directory, train

UNFINISHED = (".part", ".tmp", ".partial")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", mebibytes=4) as disk:
        yield disk


def sampled(disk: Path, elsewhere: Path) -> list[str]:
    return ["sample", str(disk / "logs"), "--rows", "400", "--days", "2"]


def preprocessed(disk: Path, elsewhere: Path) -> list[str]:
    log = write_log(elsewhere / "day_0.tsv", 1200)
    return ["preprocess", str(log), "--out", str(disk / "data"), "--rows-per-shard", "300", "--workers", "1"]


def appended(disk: Path, elsewhere: Path) -> list[str]:
    assert main(preprocessed(disk, elsewhere)) == 0
    log = write_log(elsewhere / "day_1.tsv", 1200, seed=1)
    return ["preprocess", str(log), "--out", str(disk / "data"), "--append", "--workers", "1"]


def begun(disk: Path, elsewhere: Path) -> list[str]:
    return ["train", str(small_run(elsewhere)), "--run", str(disk / "run")]


def reported(disk: Path, elsewhere: Path) -> list[str]:
    train(load_config(small_run(elsewhere)), elsewhere / "run", console=Console(quiet=True))
    shutil.copytree(elsewhere / "run", disk / "run")
    return ["report", str(disk / "run")]


def _named(folder: Path) -> dict[str, bytes]:
    """Files under a final name, but the records, which grow, and what a lock or a log of work holds."""
    return {
        name: held
        for name, held in folder_bytes(folder).items()
        if name != "ballast" and not any(part.startswith(".") for part in Path(name).parts)
    }


@pytest.mark.parametrize("pages", [1, 20])
@pytest.mark.parametrize("prepare", [sampled, preprocessed, appended, reported])
def test_a_verb_says_it_in_a_line_and_leaves_nothing_half_written(
    prepare: Callable[[Path, Path], list[str]],
    pages: int,
    disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = prepare(disk, tmp_path)
    before = _named(disk)
    ballast = fill(disk, leave_bytes=pages * PAGE)
    capsys.readouterr()
    assert main(command) == 74
    said = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in said[-1] or "full" in said[-1]
    assert not any("Traceback" in line for line in said)
    left = _named(disk)
    if prepare in (sampled, reported):  # preprocess continues from what it keeps in a folder of its own
        assert not [name for name in left if name.endswith(UNFINISHED)]
    ballast.unlink()
    assert main(command) == 0
    whole = _named(disk)
    assert not [name for name in whole if name.endswith(UNFINISHED)]
    same = [name for name in left if not name.endswith(("manifest.json", "plan.json"))]
    assert [name for name in same if left[name] != whole.get(name, left[name])] == []
    assert {name: left.get(name) for name in before} == before


def test_a_run_whose_settings_cannot_be_kept_does_not_begin(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, ballast = begun(disk, tmp_path), fill(disk, leave_bytes=0)
    assert main(command) == 74
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (disk / "run" / "config.toml").exists()
    ballast.unlink()
    assert main(command) == 0


def test_what_is_not_written_whole_leaves_the_old_and_nothing_beside_it(disk: Path) -> None:
    path = disk / "settings"
    write_atomically(path, b"old")
    fill(disk, leave_bytes=2 * PAGE)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(path, bytes(20 * PAGE))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert sorted(found.name for found in disk.iterdir()) == ["ballast", "settings"]


def test_the_settings_of_a_continued_run_are_written_only_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, written = load_config(small_run(tmp_path)), tmp_path / "run", list[Path]()
    train(config, run, console=Console(quiet=True))

    def note(path: Path, content: bytes) -> None:
        written.append(path)
        write_atomically(path, content)

    monkeypatch.setattr(run_directory, "write_atomically", note)
    longer = replace(config, budget=replace(config.budget, steps=8))
    for _ in range(2):
        train(longer, run, console=Console(quiet=True))
    assert [path.name for path in written] == ["config.toml"]
