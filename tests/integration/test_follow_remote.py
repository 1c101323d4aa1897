"""Following a log in an object store: the same run as over the same generations from the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.forked_commands import ForkedCommands
from tests.integration.test_follow import SETTINGS, append, evaluations, waits
from tests.logs import write_log
from tests.resume import lasting, same_bits
from tests.store import SECRET, Store, serve
from trainer.cli import main
from trainer.records import read_records

pytest.importorskip("moto.server", reason="moto serves the store; it is part of the extra `dev`")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        with serve("clicks") as store:
            yield store


def test_generations_that_come_to_a_store_are_trained_on_as_from_the_disk(
    store: Store, tmp_path: Path, forks: ForkedCommands
) -> None:
    days = [write_log(tmp_path / f"day_{day}.tsv", 400, seed=day) for day in range(3)]
    address, near, far = store.uri("clicks/log"), tmp_path / "near", tmp_path / "far"
    config = tmp_path / "config.toml"
    config.write_text(f"[data]\nbatch_rows = 64\n[model]\ntable_rows = 2048\n[metrics]\nport = -1\n{SETTINGS}")
    for day in days:
        append(day, tmp_path / "data")
    follow = ["--data.follow", "--data.follow_poll_seconds", "0.05", "--data.follow_idle_seconds"]
    assert main(["train", str(config), "--run", str(near), "--data.path", str(tmp_path / "data"), *follow, "0"]) == 0

    def added(day: Path) -> None:
        assert main(["preprocess", str(day), "--out", address, "--append"]) == 0

    added(days[0])
    command = ["train", str(config), "--run", str(far), "--data.path", address]
    command += ["--data.cache_path", str(tmp_path / "cache")]
    environment = {name: os.environ[name] for name in ("AWS_EC2_METADATA_DISABLED", "XDG_CACHE_HOME")}
    process = forks.start(*command, *follow[:-1], **environment)
    process.wait_until(lambda: waits(far) > 0)
    added(days[1])  # while the run waits
    process.wait_until(
        lambda: waits(far) >= 2 and any(step["epoch"] == 1 for step in read_records(far / "steps.jsonl"))
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    added(days[2])  # while it is dead
    assert main([*command, *follow, "0"]) == 0
    tensors, steps, estimates = lasting(far)
    near_tensors, near_steps, near_estimates = lasting(near)
    assert steps == near_steps
    assert estimates == near_estimates
    assert same_bits(tensors, near_tensors)
    # where it waits for rows it may be evaluated once more than the other
    assert [line for line in evaluations(far) if line in evaluations(near)] == evaluations(near)
    written = b"".join(path.read_bytes() for path in far.rglob("*") if path.is_file())
    assert SECRET.encode() not in written
