"""The batch scripts under stand-ins for `srun`, `scontrol` and `torchrun`: what they do with signals and codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "ops/deploy/slurm/alphastream.sbatch"
RANKS = ROOT / "ops/deploy/slurm/alphastream-ranks.sbatch"
SRUN = """#!/bin/sh
# hands signals on, as the true one does
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


class Cluster(NamedTuple):
    """What stands in for SLURM, and the log of what it was asked."""

    folder: Path
    begin: Callable[..., subprocess.Popen[str]]

    def asked(self) -> list[str]:
        log = self.folder / "scontrol.log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def executable(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """`begin(trainer)` submits the script with a shell script as the trainer, in a session of its own."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    executable(tmp_path / "srun", SRUN)
    executable(
        tmp_path / "scontrol",
        f'#!/bin/sh\n[ "$1" != show ] || exec printf "node7\\nnode8\\n"\necho "$@" >> {tmp_path}/scontrol.log\n',
    )

    def begin(trainer: str, *arguments: str, script: Path = SCRIPT, **variables: str) -> subprocess.Popen[str]:
        for name in ("alphastream", "torchrun"):
            executable(tmp_path / name, f"#!/bin/bash\ncd {tmp_path}\n{trainer}\n")
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ALPHASTREAM": str(tmp_path / "alphastream"),
            "TORCHRUN": str(tmp_path / "torchrun"),
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "RETRY_SECONDS": "0",
            **variables,
        }
        command = ["bash", str(script), *(arguments or ("run.toml", "--run", "RUN"))]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return Cluster(tmp_path, begin)


TRAINS = """
stop() { echo "stopped by TERM"; kill "$!"; exit 143; }
trap stop TERM
trap 'echo "saved"' USR1
sleep 100 &
echo training
while :; do wait; done
"""


def reads(job: subprocess.Popen[str], line: str) -> None:
    assert job.stdout is not None
    for text in job.stdout:
        if line in text:
            return
    raise AssertionError(f"the job ended without {line!r}")


BOTH = pytest.mark.parametrize("script", [SCRIPT, RANKS], ids=["one", "ranks"])


@BOTH
def test_before_the_time_limit_the_run_saves_and_the_job_is_queued_again(cluster: Cluster, script: Path) -> None:
    job = cluster.begin(TRAINS, script=script)
    reads(job, "training")
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143
    assert "stopped by TERM" in output
    assert "saved" not in output, "USR1 would have let it go on"
    assert cluster.asked() == ["requeue 42"]


@BOTH
def test_a_cancelled_job_is_not_queued_again(cluster: Cluster, script: Path) -> None:
    job = cluster.begin(TRAINS, script=script)
    reads(job, "training")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143
    assert "stopped by TERM" in output
    assert cluster.asked() == []


def test_many_signals_stop_the_run_once(cluster: Cluster) -> None:
    """A second TERM would make it leave without its save; the last signal says what becomes of the job."""
    job = cluster.begin(TRAINS.replace("exit 143", "read -r _ < pipe; exit 143"))
    os.mkfifo(cluster.folder / "pipe")
    reads(job, "training")
    job.send_signal(signal.SIGTERM)
    reads(job, "stopped by TERM")
    job.send_signal(signal.SIGUSR1)
    reads(job, "to requeue the job")
    (cluster.folder / "pipe").write_text("\n")
    output, _ = job.communicate(timeout=60)
    assert "stopped by TERM" not in output
    assert cluster.asked() == ["requeue 42"]


@pytest.mark.parametrize("code", [0, 2, 3, 1])
def test_a_run_that_ends_by_itself_ends_the_job(cluster: Cluster, code: int) -> None:
    job = cluster.begin(f"exit {code}")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code, output
    assert cluster.asked() == []


@pytest.mark.parametrize(("failures", "retries", "code"), [(3, "5", 0), (9, "2", 74)])
def test_a_disk_that_fails_is_tried_again(cluster: Cluster, failures: int, retries: str, code: int) -> None:
    job = cluster.begin(f"echo . >> tries; [ $(wc -l < tries) -gt {failures} ] || exit 74", RETRIES=retries)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code, output
    assert len((cluster.folder / "tries").read_text().splitlines()) == min(failures, int(retries)) + 1


def test_what_it_is_given_reaches_the_trainer(cluster: Cluster) -> None:
    job = cluster.begin('printf "%s\\n" "$@" > given', "a b.toml", "--run", "RUN", "--optimizer.lr", "0.1")
    job.communicate(timeout=60)
    given = (cluster.folder / "given").read_text().splitlines()
    assert given == ["train", "a b.toml", "--run", "RUN", "--optimizer.lr", "0.1"]


def test_torchrun_is_started_on_every_node_and_given_the_time_to_save(cluster: Cluster) -> None:
    trainer = 'printf "%s\\n" "$@" $TORCH_ELASTIC_SHUTDOWN_TIMEOUT > given'
    cluster.begin(trainer, "a b.toml", "--run", "RUN", script=RANKS).communicate(timeout=60)
    given = (cluster.folder / "given").read_text().splitlines()
    for option in ("--nnodes=2", "--nproc-per-node=8", "--max-restarts=3", "--rdzv-endpoint=node7:20042"):
        assert option in given
    assert given.pop() == "280"
    known = get_args_parser().parse_args(given)
    assert (known.training_script, known.training_script_args) == ("trainer.cli", ["train", "a b.toml", "--run", "RUN"])


@pytest.mark.parametrize(("ended", "code"), [("74.0", 74), ("3.0", 3), ("143.0", 143), ("NaN", 1), ("0.0", 1)])
@pytest.mark.parametrize("given", [("--run", "RUN"), ("--run=RUN",)])
def test_torchruns_own_code_gives_way_to_the_runs(
    cluster: Cluster, ended: str, code: int, given: tuple[str, ...]
) -> None:
    run = cluster.folder / "RUN"
    run.mkdir()
    (run / "metrics.prom").write_text("alphastream_exit_code 3.0\n")
    os.utime(run / "metrics.prom", (1, 1))  # of the time before
    arguments = ("c.toml", *(option.replace("RUN", str(run)) for option in given))
    job = cluster.begin("exit 1", *arguments, script=RANKS, RETRIES="0")
    job.communicate(timeout=60)
    assert job.returncode == 1
    job = cluster.begin(
        f"printf 'alphastream_exit_code {ended}\\n' > RUN/metrics.prom; exit 1", *arguments, script=RANKS, RETRIES="0"
    )
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code, output


@BOTH
def test_without_arguments_it_says_what_to_give(script: Path) -> None:
    ended = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage: sbatch" in ended.stderr


@BOTH
def test_it_asks_slurm_for_the_signal_in_time_and_for_a_requeue(script: Path) -> None:
    asked = re.findall(r"^#SBATCH (\S+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= set(asked)
