"""The plan on Ray: the same bytes as on threads, and a lost worker costs its shard's time and nothing else."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.preprocess import PreprocessConfig, Progress, preprocess, ray_engine
from pipeline.shards import Manifest
from tests.logs import folder_bytes, log_lines, write_log
from tests.weighted_log import FORMAT, weighted_log

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Any:
    ray = pytest.importorskip("ray", reason="Ray is the extra `ray`")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield ray
    ray.shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    write_log(folder / "day_0.tsv", 120, seed=0)
    (folder / "day_1.tsv.gz").write_bytes(gzip.compress(b"\n".join(log_lines(90, seed=1)), mtime=0))
    lines = log_lines(80, seed=2)
    lines[33] = b"no row"
    (folder / "day_2.tsv").write_bytes(b"\n".join(lines))
    return folder


def config_of(log: Path, out: Path, **options: Any) -> PreprocessConfig:
    return PreprocessConfig(
        **({"sources": (str(log),), "out": out, "rows_per_shard": 25, "max_rejects": "1"} | options)
    )


def test_ray_gives_the_same_bytes_as_threads(cluster: Any, log: Path, tmp_path: Path) -> None:
    preprocess(config_of(log, tmp_path / "threads"))
    seen: list[Progress] = []
    summary = preprocess(config_of(log, tmp_path / "ray", engine="ray"), report=seen.append)
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "threads")
    assert (summary.rows, seen[-1].rows, seen[-1].rejected_rows) == (289, 289, 1)


def test_weights_of_rows_and_the_negatives_that_stay_are_those_of_threads(cluster: Any, tmp_path: Path) -> None:
    weighted_log(400, seed=3).write(tmp_path / "log.csv")
    (tmp_path / "log.toml").write_text(FORMAT)
    for engine in ("threads", "ray"):
        options = {"format": str(tmp_path / "log.toml"), "keep_negatives": 0.5, "max_rejects": "0"}
        preprocess(config_of(tmp_path / "log.csv", tmp_path / engine, engine=engine, **options))
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "threads")
    made = Manifest.load(tmp_path / "ray")
    assert made.format.weight == "weight"
    assert made.negatives_kept == 0.5


def test_ten_generations_by_ray_are_those_of_threads(cluster: Any, log: Path, tmp_path: Path) -> None:
    days = [write_log(tmp_path / f"day_{day}.tsv", 60 + day, seed=day) for day in range(3, 13)]
    days[4] = days[4].rename(tmp_path / "day_7.tsv.gz")
    days[4].write_bytes(gzip.compress(days[4].read_bytes(), mtime=0))
    for engine in ("threads", "ray"):
        preprocess(config_of(log, tmp_path / engine))
        for day in days:
            preprocess(config_of(day, tmp_path / engine, engine=engine, append=True))
    by_threads, by_ray = folder_bytes(tmp_path / "threads"), folder_bytes(tmp_path / "ray")
    assert by_ray.keys() == by_threads.keys()
    assert {name for name in by_ray if by_ray[name] != by_threads[name]} == {"manifest.json"}
    made, expected = Manifest.load(tmp_path / "ray"), Manifest.load(tmp_path / "threads")
    assert len(made.generations) == 11
    for one, other in zip(made.generations, expected.generations, strict=True):
        assert replace(one, created=None) == replace(other, created=None)


@pytest.mark.parametrize("task", ["encode_range", "encode_source"])
def test_a_killed_worker_costs_only_its_shard(
    cluster: Any, log: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(config_of(log, tmp_path / "threads"))
    deaths = tmp_path / "deaths"
    encode = getattr(ray_engine, task)
    kill, own_process, sigkill = os.kill, os.getpid, signal.SIGKILL

    def dying(*arguments: Any) -> Any:
        if not deaths.exists():
            deaths.touch()
            kill(own_process(), sigkill)
        return encode(*arguments)

    monkeypatch.setattr(ray_engine, task, dying)
    preprocess(config_of(log, tmp_path / "ray", engine="ray"))
    assert deaths.exists()
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "threads")


def test_an_error_of_a_task_is_the_error_of_the_run(cluster: Any, log: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^1 of 290 lines read cannot be used.*day_2\.tsv:34: 1 fields instead of 40"):
        preprocess(config_of(log, tmp_path / "ray", engine="ray", max_rejects="0"))
    packed = (log / "day_1.tsv.gz").read_bytes()
    (log / "day_1.tsv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"day_1\.tsv\.gz: the compressed file is truncated") as caught:
        preprocess(config_of(log, tmp_path / "truncated", engine="ray"))
    assert "\n" not in str(caught.value)


def test_nothing_is_said_beside_the_result(log: Path, tmp_path: Path) -> None:
    """In a process of its own, as Ray's loggers and messages are set up once a process."""
    pytest.importorskip("ray", reason="Ray is the extra `ray`")
    code = "import sys; from trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "preprocess", str(log), "--out", str(tmp_path / "ray"), "--engine", "ray"]
    command += ["--max-rejects", "1", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    said = [line.partition(" ")[0] for line in done.stderr.splitlines()]
    assert said == ["train:", "validation:", "test:", f"{tmp_path / 'ray'}:", "warning:", "warning:"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_said_at_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match=rf"^RAY_ADDRESS {address} cannot be used \(Connection refused\); correct"):
            ray_engine.connect(SimpleNamespace(), 1)


def test_an_address_that_is_none_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ValueError("Invalid address format:\n nonsense")

    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS nonsense cannot be used \(Invalid address format: nonsense\)"):
        ray_engine.connect(SimpleNamespace(init=init), 1)


def test_without_ray_the_extra_is_named(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--engine ray needs Ray, .* install the extra: alphastream\[ray\]"):
        preprocess(config_of(log, tmp_path / "data", engine="ray"))
