"""Event files as TensorBoard's own reader shows them: every point once, over any number of processes and failures."""

from __future__ import annotations

import builtins
import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.receivers import TensorBoard
from ops.receivers import tensorboard as module

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
)
PHASES = {"data_wait": 0.25, "forward": 0.5}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(steps done, value) of every point that TensorBoard shows, by tag."""
    shown = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    shown.Reload()
    return {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def train(curves: TensorBoard, steps: range, *, loss: Callable[[int], float] = float) -> None:
    for step in steps:
        curves.step(step, loss=loss(step), learning_rate=0.5, seconds=1.0, phases=PHASES)


def test_a_step_is_drawn_with_its_phases(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        train(board, range(1, 4))
    shown = curves(tmp_path)
    assert shown["loss/train"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert shown["seconds/data_wait"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert shown["learning_rate"][0] == (1, 0.5)
    assert shown["seconds/step"][0] == (1, 1.0)


def test_a_point_is_the_mean_of_the_steps_since_the_last(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, every_steps=4) as board:
        board.begin(steps=0)
        train(board, range(1, 11))
    assert curves(tmp_path)["loss/train"] == [(4, 2.5), (8, 6.5)]


def test_alpha_is_drawn_where_it_acts(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, alpha_delay=4) as board:
        board.begin(steps=0)
        board.estimate(10, relative=2.0, absolute=0.25, pooled=None)
        board.estimate(11, relative=None, absolute=None, pooled=None)
    assert curves(tmp_path) == {"alpha/relative": [(15, 2.0)], "alpha/absolute": [(15, 0.25)]}


def test_an_evaluation_is_drawn_by_split(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        board.evaluation(8, "validation", loss=0.5, auc=None, normalized_entropy=0.75)
    assert curves(tmp_path) == {"loss/validation": [(8, 0.5)], "normalized_entropy/validation": [(8, 0.75)]}


def test_a_continued_run_repeats_no_step_and_keeps_what_stands(tmp_path: Path) -> None:
    """Killed after 10 steps, continued from a checkpoint after 6, at which an evaluation was drawn."""
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        train(board, range(1, 7))
        board.evaluation(6, "validation", loss=0.5, auc=0.75, normalized_entropy=0.25)
        train(board, range(7, 11), loss=lambda step: -step)
        board.estimate(5, relative=2.0, absolute=0.25, pooled=1.0)
    with TensorBoard(tmp_path) as board:
        board.begin(steps=6)
        train(board, range(7, 9))
    shown = curves(tmp_path)
    assert shown["loss/train"] == [(step, float(step)) for step in range(1, 9)]
    assert shown["loss/validation"] == [(6, 0.5)]
    assert shown["alpha/relative"] == [(6, 2.0)]


def drawn_by(board: TensorBoard) -> None:
    """Has what waits written now, as the thread does every few seconds."""
    assert board._events is not None
    board._events._write_waiting()


@pytest.mark.parametrize("written", ["before", "between", "neither"])
def test_what_a_rollback_takes_back_is_not_shown_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """Ten steps, back to the fourth and on, back to the second and on; written down by then or not."""
    monkeypatch.setattr(module.EventFiles, "_run", lambda self: self._ending.wait() and self._write_waiting())
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        train(board, range(1, 5))
        board.evaluation(2, "validation", loss=0.5, auc=None, normalized_entropy=None)
        board.evaluation(4, "validation", loss=0.25, auc=None, normalized_entropy=None)
        train(board, range(5, 11), loss=lambda step: -step)
        if written == "before":
            drawn_by(board)
        board.begin(steps=4)
        train(board, range(5, 8), loss=lambda step: -10 * step)
        if written == "between":
            drawn_by(board)
        board.begin(steps=2)
        train(board, range(3, 5), loss=lambda step: 10.0 * step)
    shown = curves(tmp_path)
    assert shown["loss/train"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert shown["loss/validation"] == [(2, 0.5)]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mean_is_of_steps_that_count(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, every_steps=4) as board:
        board.begin(steps=0)
        train(board, range(1, 8), loss=lambda step: 1e6)
        board.begin(steps=4)
        train(board, range(5, 9))
    assert curves(tmp_path)["loss/train"] == [(4, 1e6), (8, 6.5)]


def test_going_back_is_not_forgotten_with_a_disk_that_was_full(tmp_path: Path, full_disk: list[bool]) -> None:
    events = module.EventFiles(tmp_path, lambda _: None)
    for step in range(1, 5):
        events.put(step, {"loss": float(step)})
    events._write_waiting()
    with events._lock:
        events._draw_anew_from(3)
    full_disk[0] = True
    events._write_waiting()
    full_disk[0], events._retry_at = False, -math.inf
    events.put(3, {"loss": 30.0})
    events._write_waiting()
    events._leave_file()
    assert curves(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def test_a_clock_that_went_back_changes_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        train(board, range(1, 5), loss=lambda step: -step)
    monkeypatch.setattr(module.time, "time_ns", lambda: 10**18)
    with TensorBoard(tmp_path) as board:
        board.begin(steps=2)
        train(board, range(3, 5))
    assert curves(tmp_path)["loss/train"] == [(1, -1.0), (2, -2.0), (3, 3.0), (4, 4.0)]


def test_what_is_not_finite_is_written_too(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.begin(steps=0)
        train(board, range(1, 2), loss=lambda _: math.nan)
    [(step, loss)] = curves(tmp_path)["loss/train"]
    assert step == 1
    assert math.isnan(loss)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the disk is full, to be set: every flush of a file fails then, with half of it written."""
    full = [False]
    opened = Path.open

    class File:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> None:
            if full[0]:
                self.file.write(content[:7])
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(content)

        def flush(self) -> None:
            self.file.flush()

        def close(self) -> None:
            self.file.close()

    def opening(path: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        return File(file) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", opening)
    return full


def test_a_disk_that_was_full_costs_the_points_of_that_time(tmp_path: Path, full_disk: list[bool]) -> None:
    """Told once; a new file begins behind it, since nothing can be read behind half a record. What waits is kept."""
    told: list[str] = []
    events = module.EventFiles(tmp_path, told.append)
    events._first_step = 1
    for step in range(1, 5):
        full_disk[0] = step in (2, 3)
        events.put(step, {"loss": float(step)})
        events._write_waiting()
        events._retry_at = -math.inf
    events._leave_file()
    assert curves(tmp_path) == {"loss": [(1, 1.0), (3, 3.0), (4, 4.0)]}
    assert len(told) == 1
    assert "No space left" in told[0]


def test_a_failed_disk_is_left_alone_for_a_while(tmp_path: Path, full_disk: list[bool]) -> None:
    events = module.EventFiles(tmp_path, lambda _: None)
    full_disk[0] = True
    for step in (1, 2):
        events.put(step, {"loss": 1.0})
        events._write_waiting()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(events._waiting) == 2


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written at all: the queue stays bounded, and what is dropped is told of once."""
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    told: list[str] = []
    events = module.EventFiles(tmp_path, told.append)
    for step in range(10):
        events.put(step, {"loss": 1.0})
    assert [step for _, step, _ in events._waiting] == [7, 8, 9]
    assert len(told) == 1


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    with TensorBoard(tmp_path / "file" / "tensorboard", warn=told.append) as board:
        board.begin(steps=0)
        train(board, range(1, 3))
    assert len(told) == 1
    assert "training goes on" in told[0]


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"alphastream\[tensorboard\]"):
        TensorBoard(tmp_path)
    TensorBoard()


def test_without_a_folder_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *rest: Any) -> Any:
        assert not name.startswith("tensorboard")
        return imported(name, *rest)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with TensorBoard() as board:
        board.begin(steps=0)
        train(board, range(1, 3))
        board.estimate(1, relative=1.0, absolute=1.0, pooled=1.0)
        board.evaluation(1, "test", loss=1.0, auc=1.0, normalized_entropy=1.0)
