"""What a run will want of its disk, said while it can still be helped; and what is free, from a thread that ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from trainer.job.saving import disk_space
from trainer.job.saving.disk_space import DiskForecast, forecast_of, size_text, watched_disk


def forecast(*, free: int, held: int = 0, records: int = 0) -> DiskForecast:
    return DiskForecast(
        run=Path("RUN"), checkpoint_bytes=1000, keep=3, held_bytes=held, records_bytes=records, free_bytes=free
    )


def test_what_is_kept_and_the_one_being_written_must_fit_beside_the_records() -> None:
    assert forecast(free=4000).needed_bytes == 4000
    assert forecast(free=4000, records=500).needed_bytes == 4500
    assert forecast(free=1500, held=3000, records=500).needed_bytes == 1500
    assert forecast(free=0, held=9000).needed_bytes == 0
    for enough in (forecast(free=4000), forecast(free=1500, held=3000, records=500), forecast(free=0, held=9000)):
        assert enough.warning is None


def test_a_disk_that_will_be_full_is_said_with_its_numbers() -> None:
    warning = forecast(free=3999, records=0).warning
    assert warning is not None
    assert "4 checkpoints of 1 kB (checkpoint.keep = 3" in warning
    assert "want 4 kB more, and 4 kB are free" in warning


def test_a_disk_without_room_for_even_one_is_said_differently() -> None:
    warning = forecast(free=999).warning
    assert warning is not None
    assert "not one checkpoint fits on this disk: it takes 1 kB, and 999 bytes are free" in warning
    held = forecast(free=500, held=600).warning
    assert held is not None
    assert "not one" not in held, "one that lies there can go"


def test_what_lies_there_and_the_steps_to_come_are_counted(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "a").write_bytes(bytes(700))
    (tmp_path / "checkpoints" / "step-00000001" / "b").write_bytes(bytes(50))
    found = forecast_of(tmp_path, checkpoint_bytes=1, keep=1, steps_to_come=10)
    assert (found.held_bytes, found.records_bytes) == (750, 10 * disk_space.STEP_RECORD_BYTES)
    assert found.free_bytes > 0
    assert forecast_of(tmp_path, checkpoint_bytes=1, keep=1, steps_to_come=None).records_bytes == 0


def test_free_space_is_told_at_once_and_again_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "SAMPLE_SECONDS", 0.0)
    told: list[float] = []
    thrice = threading.Event()

    def tell(free: float) -> None:
        told.append(free)
        if len(told) == 3:
            thrice.set()

    with watched_disk(tmp_path, tell):
        assert thrice.wait(60)
        (watching,) = [thread for thread in threading.enumerate() if thread.name == "disk-space"]
        assert watching.daemon, "or a disk that hangs would hold the interpreter's end"
    watching.join(60)
    assert not watching.is_alive()
    assert min(told) > 0


def test_a_disk_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError("stale"), 5])
    told = threading.Event()

    def ask(_: Path) -> int:
        answer = next(answers, 5)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(disk_space, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(disk_space, "free_bytes", ask)
    with watched_disk(tmp_path, lambda _: told.set()):
        assert told.wait(60)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (123_456, "123 kB"), (999_600, "1 MB"), (1.25e9, "1.25 GB")],
)
def test_sizes_have_three_digits(size: float, text: str) -> None:
    assert size_text(size) == text
