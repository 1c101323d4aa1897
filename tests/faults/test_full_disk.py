"""A file system that is full when a run saves, and has room again later: nothing is lost but time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from tests.faults.small_disk import PAGE, fill, small_file_system
from tests.faults.small_run import same_end, small_run
from tests.saves import end_saves_at_once
from trainer.config import Config, load_config
from trainer.console import Console
from trainer.job import checkpointing, train
from trainer.loop import Stop
from trainer.records import read_records, verify_checkpoints

CHECKPOINT_PAGES = 9
"""Of the small run; tmpfs counts pages."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = load_config(small_run(tmp_path_factory.mktemp("undisturbed")))
    return replace(config, checkpoint=replace(config.checkpoint, keep=3))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert begin(config, run) is Stop.BUDGET
    return run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory whose checkpoints lie on a small disk."""
    with small_file_system(tmp_path / "small", mebibytes=1) as disk:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoints").symlink_to(disk)
        yield tmp_path / "run"


def begin(config: Config, run: Path) -> Stop:
    return train(config, run, console=Console(quiet=True))


def warnings(run: Path) -> list[str]:
    return [line["message"] for line in read_records(run / "events.jsonl") if line["event"] == "warning"]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("pages", range(CHECKPOINT_PAGES))
def test_each_page_that_is_missing_fails_the_save_and_nothing_of_it_stays(
    config: Config, run: Path, whole: Path, on_step: Callable[[int, Callable[[], object]], None], pages: int
) -> None:
    """The first save of the run, so that nothing can go for it: at its tensors, its state, its manifest."""
    disk, seen = run / "checkpoints", list[list[str]]()
    on_step(1, lambda: fill(disk, leave_bytes=pages * PAGE))

    def make_room() -> None:
        seen.append(checkpoints(run))
        (disk / "ballast").unlink()

    on_step(6, make_room)
    assert begin(config, run) is Stop.BUDGET
    assert seen == [["ballast"]]
    assert sum("No space left on device" in text for text in warnings(run)) == 1
    assert any("free " in text and "training goes on, and saves again in 30 s" in text for text in warnings(run))
    assert checkpoints(run) == ["step-00000006"]
    assert same_end(run, whole)


def test_older_checkpoints_go_for_newer_ones_and_the_newest_whole_one_stays(
    config: Config,
    run: Path,
    whole: Path,
    on_step: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = run / "checkpoints"
    end_saves_at_once(monkeypatch)
    on_step(5, lambda: fill(disk, leave_bytes=2 * PAGE))
    assert begin(config, run) is Stop.BUDGET
    assert [text for text in warnings(run) if "deleted" in text] == [
        "No space left on device: deleted step-00000002 to make room for a checkpoint"
    ]
    assert checkpoints(run) == ["ballast", "step-00000004", "step-00000006"]
    assert all(health.damage is None for health in verify_checkpoints(run))
    assert same_end(run, whole)


def test_the_last_save_waits_for_room(config: Config, run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=None))
    ballast = fill(run / "checkpoints", leave_bytes=3 * PAGE)
    monkeypatch.setattr(checkpointing, "pause", lambda _: ballast.unlink())
    assert begin(config, run) is Stop.BUDGET
    assert checkpoints(run) == ["step-00000006"]
    assert same_end(run, whole)


def test_a_disk_that_stays_full_is_said_and_the_same_command_continues(config: Config, run: Path, whole: Path) -> None:
    ballast = fill(run / "checkpoints", leave_bytes=0)
    impatient = replace(config, checkpoint=replace(config.checkpoint, final_retry_seconds=0.0))
    with pytest.raises(
        StorageError, match=r"could not be written \(No space left on device\); free .*, and 0 bytes are"
    ):
        begin(impatient, run)
    assert checkpoints(run) == ["ballast"]
    ballast.unlink()
    assert begin(impatient, run) is Stop.BUDGET
    assert same_end(run, whole)
