"""`trainer.train` where programs and notebooks meet the world: taken ports, URIs, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import trainer
from pipeline.errors import InputError
from tests.resume import lasting, same_bits
from trainer.config import Config, MetricsConfig, config_from
from trainer.loop import Stop
from trainer.step import TrainStep

STEPS = 12


@pytest.fixture
def settings(small_data: Path) -> dict[str, Any]:
    return {
        "data": {"path": str(small_data), "batch_rows": 64},
        "model": {"table_rows": 2048},
        "budget": {"steps": STEPS},
        "eval": {"rows": 500},
    }


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def train_in_program(settings: dict[str, Any], run: Path) -> trainer.TrainedRun:
    return trainer.train(settings, run, quiet=True)


def train_in_notebook(settings: dict[str, Any], run: Path) -> trainer.TrainedRun:
    """As its cells run: in the main thread, within a running event loop."""

    async def cell() -> trainer.TrainedRun:
        return trainer.train(settings, run, quiet=True)

    return asyncio.run(cell())


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a step."""
    call = TrainStep.__call__

    def interrupting(self: TrainStep, *arguments: Any, **keywords: Any) -> Any:
        if keywords["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(TrainStep, "__call__", interrupting)


@pytest.mark.parametrize("train", [train_in_program, train_in_notebook])
def test_ctrl_c_ends_it_after_the_step_and_the_same_call_goes_on(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[[dict[str, Any], Path], trainer.TrainedRun],
) -> None:
    """And Ctrl-C is what it was before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        cut = train(settings, tmp_path / "cut")
    assert (cut.stop, cut.stop.unfinished) == (Stop.INTERRUPTED, True)
    assert cut.open().step == 6
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert train(settings, tmp_path / "cut").stop is Stop.BUDGET
    train(settings, tmp_path / "whole")
    assert lasting(tmp_path / "cut")[1:] == lasting(tmp_path / "whole")[1:]
    assert same_bits(lasting(tmp_path / "cut")[0], lasting(tmp_path / "whole")[0])


def test_a_second_ctrl_c_ends_it_at_once(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is let go of, and the same call goes on with what was saved."""

    def twice(*_arguments: Any, **_keywords: Any) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", twice)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(settings, tmp_path / "run", quiet=True)
    assert not [each.name for each in threading.enumerate() if each.name == "signals"]
    assert trainer.train(settings, tmp_path / "run", quiet=True).stop is Stop.BUDGET


def test_a_port_that_is_taken_is_named_and_one_that_nobody_named_is_any(
    settings: dict[str, Any], tmp_path: Path, taken_port: int
) -> None:
    """Of all three forms that settings come in."""
    config: Config = config_from({**settings, "metrics": {"port": taken_port}}, where="the test")
    file = tmp_path / "config.toml"
    file.write_text(
        f'[data]\npath = "{settings["data"]["path"]}"\nbatch_rows = 64\n[model]\ntable_rows = 2048\n'
        f"[budget]\nsteps = 2\n[metrics]\nport = {taken_port}\n"
    )
    for given in ({**settings, "metrics": {"port": taken_port}}, config, file):
        with pytest.raises(InputError, match=f"metrics.port = {taken_port} is in use on 127.0.0.1; stop") as raised:
            trainer.train(given, tmp_path / "run", quiet=True)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()
    file.write_text(file.read_text().replace(f"port = {taken_port}\n", ""))
    short = {**settings, "budget": {"steps": 2}}
    with socket.socket() as listening:
        with suppress(OSError):  # somebody else has it already
            listening.bind(("127.0.0.1", MetricsConfig().port))
            listening.listen()
        for number, given in enumerate((short, config_from(short, where="the test"), file)):
            assert trainer.train(given, tmp_path / f"run-{number}", quiet=True).stop is Stop.BUDGET


def test_data_at_a_uri_trains_and_evaluates_as_the_local_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    path = settings["data"]["path"]
    far = {**settings["data"], "path": Path(path).as_uri(), "cache_path": str(tmp_path / "cache")}
    trainer.train(settings, tmp_path / "near", quiet=True)
    opened = trainer.train({**settings, "data": far}, tmp_path / "far", quiet=True).open()
    assert same_bits(lasting(tmp_path / "near")[0], lasting(tmp_path / "far")[0])
    assert opened.evaluate("test", rows=300).loss == opened.evaluate("test", rows=300, data=path).loss


def test_a_run_at_a_uri_is_refused_in_a_line(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes no folder of that name."""
    monkeypatch.chdir(tmp_path)
    for call in (lambda run: trainer.train(settings, run, quiet=True), trainer.open_run):
        for run in ("s3://me:secret@bucket/run", Path("s3://me:secret@bucket/run"), (tmp_path / "run").as_uri()):
            with pytest.raises(InputError, match="local folder") as raised:
                call(run)
            assert "\n" not in str(raised.value)
            assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
