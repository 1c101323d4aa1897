"""The steps of a job: what is built, served and resumed, in this order, and closed again whichever of them fails."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ops.receivers import ServiceManager
from tests.tiny_data import write_tiny
from trainer.config import Config, ConfigError, config_from
from trainer.console import Console
from trainer.job.daemon import train
from trainer.job.observer import RunObserver
from trainer.job.run_directory import RunDirectory
from trainer.loop import Stop
from trainer.records.records import read_records


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", {"train": [[40]], "validation": [[8]], "test": [[8]]})


def settings(data: Path, **sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "data": {"path": str(data), "batch_rows": 8},
        "model": {"table_rows": 16, "embedding_dim": 2, "bottom": [2], "top": [2, 1]},
        "budget": {"steps": 3},
        "metrics": {"port": -1},
    }
    return config_from({**values, **sections}, where="test")


def events(run: Path) -> list[str]:
    """What happened, without the time it took."""
    return [record["event"] for record in read_records(run / "events.jsonl") if record["event"] != "pause"]


def begin(config: Config, run: Path) -> Stop:
    return train(config, run, console=Console(quiet=True))


def test_a_run_says_what_happens_to_it_in_order(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert begin(settings(data, checkpoint={"every_steps": 2}), run) is Stop.BUDGET
    assert begin(settings(data, budget={"steps": 4}), run) is Stop.BUDGET
    assert events(run) == [
        "start",
        "checkpoint",
        "checkpoint",
        "stop",
        "resume",
        "settings",
        "warning",
        "checkpoint",
        "stop",
    ]
    assert [record["step"] for record in read_records(run / "steps.jsonl")] == [0, 1, 2, 3]


def test_an_ended_run_is_neither_trained_nor_recorded_again(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert begin(settings(data), run) is Stop.BUDGET
    before = (run / "steps.jsonl").read_bytes()
    assert begin(settings(data), run) is Stop.BUDGET
    assert (run / "steps.jsonl").read_bytes() == before
    assert events(run) == ["start", "checkpoint", "stop", "resume"]


def assert_closed(config: Config, run: Path, threads: int) -> None:
    """Nobody holds the run, and the threads of feed and server are gone."""
    RunDirectory(run, config.resolved()).close()
    assert threading.active_count() == threads


def test_a_model_that_cannot_be_made_leaves_no_run_and_no_thread(data: Path, tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match=r"optimizer\.options\.nesterof"):
        begin(settings(data, optimizer={"options": {"nesterof": True}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert threading.active_count() == threads


def test_an_address_that_is_taken_leaves_no_run_and_lets_go_of_one_that_is_there(data: Path, tmp_path: Path) -> None:
    run, threads = tmp_path / "run", threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = settings(data, metrics={"port": taken.getsockname()[1]})
        with pytest.raises(ConfigError, match="is in use"):
            begin(config, run)
        assert not run.exists()
        begin(settings(data), run)
        with pytest.raises(ConfigError, match="is in use"):
            begin(config, run)
    assert events(run)[-1] == "failed"
    assert_closed(config, run, threads)


def test_a_run_that_cannot_be_resumed_is_served_no_longer(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, threads = tmp_path / "run", threading.active_count()
    begin(settings(data), run)
    other = write_tiny(tmp_path / "other", {"train": [[41]], "validation": [[8]], "test": [[8]]})
    config = settings(other, metrics={"port": 0})
    with pytest.raises(ConfigError, match="other rows"):
        train(config, run, console=Console())
    url = capfd.readouterr().err.split("live page ")[1].split()[0]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)
    assert events(run)[-1] == "failed"
    assert_closed(settings(data), run, threads)


def test_an_error_between_steps_closes_everything(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, threads = tmp_path / "run", threading.active_count()

    def broken(*_: object) -> None:
        raise RuntimeError("the terminal is on fire")

    monkeypatch.setattr(RunObserver, "on_step", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        begin(settings(data, metrics={"port": 0}), run)
    assert events(run) == ["start", "failed"]
    assert_closed(settings(data), run, threads)


def test_a_service_with_nothing_to_do_has_started_and_stopped(data: Path, tmp_path: Path) -> None:
    """One that ended well before it said READY would count as failed, and be started again for ever."""
    begin(settings(data), tmp_path / "run")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        manager = ServiceManager(str(tmp_path / "notify"))
        assert train(settings(data), tmp_path / "run", console=Console(quiet=True), manager=manager) is Stop.BUDGET
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(listener.recv(4096).decode())
    assert [message.partition("=")[0] for message in heard] == ["STATUS", "STATUS", "READY", "STOPPING", "STATUS"]
    assert heard[-1].startswith("STATUS=stopping: nothing to do")
