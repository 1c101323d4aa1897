"""Records that cannot be written: said at first and now and then, counted, and said again when they can."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ops.metrics import Metrics
from trainer.config import config_from
from trainer.console import Console
from trainer.job.recording.watch import WARN_SECONDS, RecordWatch
from trainer.job.run_directory import RunDirectory


def value(metrics: Metrics, series: str) -> float:
    return next(float(line.split()[1]) for line in metrics.exposition().splitlines() if line.startswith(series + " "))


def test_a_full_disk_is_warned_of_now_and_then_counted_and_told_to_be_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    metrics, said, now, write, full = Metrics(), [], [0.0], os.write, [False]

    def limited(file: int, data: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", limited)
    with RunDirectory(tmp_path / "run", config) as directory:
        watch = RecordWatch(
            directory, metrics, Console(), warn=lambda text, step: said.append((step, text)), monotonic=lambda: now[0]
        )
        steps = directory.records["steps"]

        def step(number: int) -> None:
            steps.append({"step": number})
            directory.flush()
            watch.look(step=number)

        step(0)
        assert said == []
        full[0] = True
        for number in range(1, 4):
            step(number)
        [(at, text)] = said
        assert (at, text.split(": ", 1)[1]) == (
            1,
            "cannot be written (No space left on device); training goes on, 1 records wait in memory; make room there",
        )
        assert value(metrics, 'alphastream_records_waiting{file="steps"}') == 3
        now[0] += WARN_SECONDS
        step(4)
        assert len(said) == 2
        full[0] = False
        step(5)
        assert said[2:] == [(5, "steps.jsonl is written again")]
        assert value(metrics, 'alphastream_records_waiting{file="steps"}') == 0
        assert value(metrics, 'alphastream_records_lost_total{file="steps"}') == 0
        full[0] = True
        step(6)
        assert len(said) == 4, "new trouble was not said"
        watch.end(step=7)
        assert value(metrics, 'alphastream_records_lost_total{file="steps"}') == 1
        assert "1 records could not be written and end with this process" in capsys.readouterr().err


def test_lines_that_the_console_loses_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="test").resolved()
    metrics, console = Metrics(), Console()
    with RunDirectory(tmp_path / "run", config) as directory:
        watch = RecordWatch(directory, metrics, console, warn=lambda *_: None)
        for stderr in (None, (tmp_path / "closed").open("w")):
            if stderr is not None:
                stderr.close()
            monkeypatch.setattr("sys.stderr", stderr)
            console.say("nobody sees it")
            console.warn("nor this")
        watch.look(step=1)
        watch.look(step=2)
    assert value(metrics, "alphastream_console_lines_lost_total") == 4
