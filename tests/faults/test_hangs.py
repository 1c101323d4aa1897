"""Reads that hang or fail for a while: noticed within the budget, saved on TERM, and nothing lost but time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.runs import CAN_BLOCK, STEPS, Run, write_data, write_settings
from tests.logs import write_log
from tests.resume import lasting, same_bits
from trainer.cli import main
from trainer.records import read_records

blocks = pytest.mark.skipif(not CAN_BLOCK, reason="a library that blocks reads needs a C compiler, and Linux")
WATCHDOG = '[watchdog]\ndata_wait_seconds = 0.5\nfirst_step_seconds = 60\naction = "{action}"\n'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_settings(folder / "config.toml", write_data(folder / "data"))
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder / "run"


def assert_same(run: Path, whole: Path) -> None:
    (tensors, steps, estimates), (expected, all_steps, all_estimates) = lasting(run), lasting(whole)
    assert steps == all_steps
    assert estimates == all_estimates
    assert same_bits(tensors, expected)


def events(run: Path) -> list[str]:
    return [record["event"] for record in read_records(run / "events.jsonl")]


def put_fifo(data: Path) -> tuple[Path, Path]:
    """A FIFO, which nobody writes to, in place of the fourth shard; and where that is now."""
    shard = data / "train/part-00003.parquet"
    aside = shard.rename(data / "aside.parquet")
    os.mkfifo(shard)
    return shard, aside


@pytest.mark.parametrize(("action", "code"), [("report", 143), ("exit", 74)])
def test_a_shard_that_hangs_is_noticed_and_what_is_in_memory_saved(
    server: ForkServer, tmp_path: Path, whole: Path, action: str, code: int
) -> None:
    data = write_data(tmp_path / "data")
    shard, aside = put_fifo(data)
    more = WATCHDOG.format(action=action)
    config = write_settings(tmp_path / "config.toml", data, more, port=0)
    run = Run(config, tmp_path / "run", server=server)
    if action == "report":
        run.wait_until(lambda: run.ask("readyz") == (503, run.ask("readyz")[1]) and "hung" in run.ask("readyz")[1])
        assert run.metric("hung") == 1
        assert run.metric('watchdog_hangs_total{phase="data_wait"}') == 1
        status = run.status()
        assert (status["state"], status["bound"]["kind"]) == ("hung", "data")
        run.wait_until(lambda: "hang" in events(run.path))
        before = run.metric('step_phase_seconds_total{phase="data_wait"}')
        assert run.metric('step_phase_seconds_total{phase="data_wait"}') > before
        run.process.send_signal(signal.SIGTERM)
    assert run.end() == code, run.said()
    stacks = (run.path / "stacks.txt").read_text()
    assert "data_wait has taken" in stacks
    assert "thread alphastream-reader_0 (daemon):" in stacks
    assert "Traceback" not in run.said()
    assert sum(1 for _ in read_records(run.path / "steps.jsonl")) == 14  # all whose rows were there
    assert max((run.path / "checkpoints").iterdir()).name == "step-00000014"

    shard.unlink()
    aside.rename(shard)
    assert main(["train", str(config), "--run", str(run.path), "--metrics.port", "-1"]) == 0
    assert_same(run.path, whole)


def test_a_first_shard_that_hangs_lets_the_run_stop(server: ForkServer, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    shard = data / "train/part-00000.parquet"
    shard.unlink()
    os.mkfifo(shard)
    run = Run(write_settings(tmp_path / "config.toml", data), tmp_path / "run", server=server)
    run.wait_until(lambda: "start" in events(run.path))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.said()


def test_an_evaluation_whose_rows_hang_lets_the_run_stop(server: ForkServer, tmp_path: Path, whole: Path) -> None:
    data = write_data(tmp_path / "data")
    shard = data / "validation/part-00000.parquet"
    aside = shard.rename(data / "aside.parquet")
    os.mkfifo(shard)
    config = write_settings(tmp_path / "config.toml", data, "[eval]\nevery_steps = 20\n", port=0)
    run = Run(config, tmp_path / "run", server=server)
    run.wait_until(lambda: run.status()["state"] == "evaluating")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.said()
    shard.unlink()
    aside.rename(shard)
    assert main(["train", str(config), "--run", str(run.path), "--metrics.port", "-1"]) == 0
    assert_same(run.path, whole)


@blocks
def test_reads_that_block_and_go_on_cost_time_alone(server: ForkServer, tmp_path: Path, whole: Path) -> None:
    data, blocked = write_data(tmp_path / "data"), tmp_path / "blocked"
    blocked.touch()
    environment = {
        "BLOCK_READS_OF": "train/part-00003",
        "BLOCK_READS_WHILE": str(blocked),
    }
    config = write_settings(tmp_path / "config.toml", data, WATCHDOG.format(action="report"), port=0)
    run = Run(config, tmp_path / "run", environment=environment, server=server)
    run.wait_until(lambda: run.ask("readyz")[1].startswith("hung"))
    blocked.unlink()
    assert run.end() == 0, run.said()
    assert_same(run.path, whole)
    assert "the run goes on" in run.said()
    found = events(run.path)
    assert found.index("hang") < found.index("recovery")


@blocks
def test_reads_that_fail_for_a_while_are_tried_again_and_said_once(
    server: ForkServer, tmp_path: Path, whole: Path
) -> None:
    data, failing = write_data(tmp_path / "data"), tmp_path / "failing"
    failing.touch()
    environment = {
        "BLOCK_READS_OF": "train/part-00003",
        "FAIL_READS_WHILE": str(failing),
    }
    config = write_settings(tmp_path / "config.toml", data, port=0)
    run = Run(config, tmp_path / "run", environment=environment, server=server)
    run.wait_until(lambda: run.metric('read_retries_total{cause="error"}') >= 2)
    failing.unlink()
    assert run.end() == 0, run.said()
    assert_same(run.path, whole)
    assert run.said().count("part-00003.parquet: Input/output error; it is tried again for 60 s") == 1

    failing.touch()
    config = write_settings(tmp_path / "config.toml", data, retry=0.5)
    run = Run(config, tmp_path / "another", environment=environment, server=server)
    assert run.end() == 74
    assert "part-00003.parquet: row group 0 cannot be read (Input/output error)" in run.said()


def append(data: Path, log: Path) -> None:
    assert main(["preprocess", str(log), "--out", str(data), *(["--append"] if data.exists() else [])]) == 0


def test_a_wait_for_a_log_to_grow_is_no_hang_and_hears_signals(server: ForkServer, tmp_path: Path) -> None:
    """Longer than the watchdog lets anything else wait; and then it goes on."""
    days, data = [write_log(tmp_path / f"day_{day}.tsv", 300, seed=day) for day in range(2)], tmp_path / "data"
    append(data, days[0])
    config = write_settings(
        tmp_path / "config.toml",
        data,
        "[schedule]\nname = 'constant'\n[watchdog]\ndata_wait_seconds = 1\nfirst_step_seconds = 60\naction = 'exit'\n",
        port=0,
    )
    text = config.read_text()
    config.write_text(
        text.replace("[data]", "[data]\nfollow = true\nfollow_poll_seconds = 0.05").replace(f"steps = {STEPS}", "")
    )
    run = Run(config, tmp_path / "run", server=server)
    run.wait_until(lambda: "waiting" in events(run.path))
    run.wait_until(lambda: run.metric("generation_wait_seconds_total") > 2.5)
    saves = events(run.path).count("checkpoint")
    run.process.send_signal(signal.SIGHUP)
    run.wait_until(lambda: events(run.path).count("checkpoint") == saves + 1)
    run.wait_until(lambda: run.metric("waiting_for_generation") == 1)
    assert run.ask("readyz")[0] == 200
    steps = run.metric("steps_total")
    append(data, days[1])
    run.wait_until(lambda: run.metric("steps_total") > steps)
    run.wait_until(lambda: events(run.path).count("waiting") == 2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.said()
    assert "hang" not in events(run.path)
    assert "SIGHUP: saving, then going on" in run.said()
    whole = tmp_path / "whole"
    ended = ["--data.follow_idle_seconds", "0", "--metrics.port", "-1"]
    assert main(["train", str(config), "--run", str(whole), *ended]) == 0
    assert main(["train", str(config), "--run", str(run.path), *ended]) == 0
    assert_same(run.path, whole)
