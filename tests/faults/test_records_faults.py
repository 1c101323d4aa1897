"""Log gone, records not writable, files cut: training ends with the weights that it would have had undisturbed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import ForkServer, fault
from tests.faults.runs import Run
from tests.resume import lasting, same_bits
from tests.tiny_data import write_tiny
from trainer.config import Config, config_from, config_to_toml
from trainer.console import Console
from trainer.job import observer, train
from trainer.job.observer import RunObserver
from trainer.loop import Stop
from trainer.records import RecordsConfig, read_records


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_tiny(tmp_path / "data", {"train": [[400]], "validation": [[8]]})
    values: dict[str, Any] = {
        "data": {"path": str(data), "batch_rows": 8},
        "model": {"table_rows": 16, "embedding_dim": 2, "bottom": [2], "top": [2, 1]},
        "stepsize": {"policy": "observe", "interval": 1, "count": 1, "delay": 2},
        "budget": {"steps": 40},
        "checkpoint": {"every_steps": 6, "keep": 2},
        "metrics": {"port": -1},
    }
    return config_from(values, where="test")


def begin(config: Config, run: Path) -> Stop:
    return train(config, run, console=Console(quiet=True))


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has a function called with each step just before it is told."""
    original = RunObserver.on_step

    def install(act: Callable[[int], None]) -> None:
        def on_step(self: RunObserver, record: Any, timing: Any, training_seconds: float) -> None:
            act(record["step"])
            original(self, record, timing, training_seconds)

        monkeypatch.setattr(RunObserver, "on_step", on_step)

    return install


@pytest.mark.parametrize(("error", "until"), [(errno.ENOSPC, 20), (errno.EIO, 1000), (errno.EROFS, 1000)])
def test_records_that_cannot_be_written_change_no_weight(
    config: Config, tmp_path: Path, request: pytest.FixtureRequest, error: int, until: int
) -> None:
    monkeypatch, before_step = (request.getfixturevalue(name) for name in ("monkeypatch", "before_step"))
    begin(config, tmp_path / "undisturbed")
    now, write = [0], os.write

    def failing(file: int, data: bytes) -> int:
        name = Path(f"/proc/self/fd/{file}").readlink()
        if name.suffix == ".jsonl" and 3 <= now[0] < until:
            raise OSError(error, os.strerror(error))
        return write(file, data)

    monkeypatch.setattr(os, "write", failing)
    monkeypatch.setattr(observer, "FLUSH_STEPS", 1)
    before_step(lambda step: now.__setitem__(0, step))
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    expected, found = lasting(tmp_path / "undisturbed"), lasting(tmp_path / "run")
    assert same_bits(found[0], expected[0])
    if until < 1000:
        assert found[1:] == expected[1:], "a record is missing, or out of order"
        messages = [line.get("message", "") for line in read_records(tmp_path / "run" / "events.jsonl")]
        assert sum("cannot be written" in text for text in messages) >= 1
        assert "steps.jsonl is written again" in messages
    else:
        exposition = (tmp_path / "run" / "metrics.prom").read_text()
        lost = [line for line in exposition.splitlines() if 'records_lost_total{file="steps"}' in line]
        assert float(lost[0].split()[-1]) == 40 - len(found[1]) > 30


def structure(run: Path) -> list[dict[str, Any]]:
    """The lines of steps.jsonl less what the clock says."""
    lines = [dict(line) for line in read_records(run / "steps.jsonl")]
    for line in lines:
        del line["seconds"]
        line["phases"] = sorted(line["phases"])
        if "spread" in line:
            del line["spread"]["seconds"]
    return lines


def test_a_run_that_is_cut_down_at_any_moment_has_the_same_thinned_records(
    config: Config, tmp_path: Path, before_step: Any
) -> None:
    # all checkpoints are kept: when an old one is removed, by a thread, is nobody's to say
    checkpoint = replace(config.checkpoint, keep=10)
    config = replace(config, records=RecordsConfig(full_steps=4), checkpoint=checkpoint)
    begin(config, tmp_path / "undisturbed")
    assert len(structure(tmp_path / "undisturbed")) < 30
    ends = [5, 9, 9, 16, 17, 30, 33, 38]

    def die(step: int) -> None:
        if ends and step == ends[0]:
            ends.pop(0)
            raise RuntimeError("the process ends here")

    before_step(die)
    while ends:
        with pytest.raises(RuntimeError):
            begin(config, tmp_path / "run")
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    assert structure(tmp_path / "run") == structure(tmp_path / "undisturbed")
    alpha = [(tmp_path / run / "alpha.jsonl").read_bytes() for run in ("run", "undisturbed")]
    assert alpha[0] == alpha[1]
    assert same_bits(lasting(tmp_path / "run")[0], lasting(tmp_path / "undisturbed")[0])
    messages = [line.get("message", "") for line in read_records(tmp_path / "run" / "events.jsonl")]
    assert not any("lacks" in text for text in messages)


def test_a_record_file_cut_while_nobody_looked_is_said_at_resume(config: Config, tmp_path: Path) -> None:
    begin(replace(config, budget=replace(config.budget, steps=20)), tmp_path / "run")
    steps = tmp_path / "run" / "steps.jsonl"
    steps.write_bytes(b"".join(steps.read_bytes().splitlines(keepends=True)[:12]))
    for name in ("alpha.jsonl", "events.jsonl"):
        (tmp_path / "run" / name).unlink()
    assert begin(config, tmp_path / "run") is Stop.BUDGET
    messages = [line["message"] for line in read_records(tmp_path / "run" / "events.jsonl") if "message" in line]
    assert any(text.startswith("steps.jsonl lacks 8 of the 20 steps that were written to it") for text in messages)
    assert any(text.startswith("alpha.jsonl lacks 18 of the 18 estimates") for text in messages)
    assert any(text.startswith("events.jsonl lacks ") for text in messages)
    assert [line["step"] for line in read_records(steps)] == [*range(12), *range(20, 40)]


STREAMS = ("closed", "full", "pipe_without_reader", "terminal_that_is_gone")


def test_streams_that_are_gone_or_full_change_no_weight_and_no_exit_code(
    server: ForkServer, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(config_to_toml(config))
    begin(config, tmp_path / "undisturbed")
    expected = lasting(tmp_path / "undisturbed")
    for case in STREAMS:
        run = Run(tmp_path / "run.toml", tmp_path / case, server=server, faults=[fault(f"stream_faults.{case}")])
        assert run.end() == 0, (case, run.said())
        found = lasting(tmp_path / case)
        assert same_bits(found[0], expected[0]), case
        assert found[1:] == expected[1:], case
        if case != "closed":  # which is opened on nothing
            exposition = (tmp_path / case / "metrics.prom").read_text()
            lost = next(line for line in exposition.splitlines() if line.startswith("alphastream_console_lines_lost"))
            assert float(lost.split()[-1]) >= 1, case
