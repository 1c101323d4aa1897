"""The batch script, under an `srun` and an `scontrol` of our own: what it does with signals and exit codes."""

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

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "ops/deploy/slurm/alphastream.sbatch"
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
    executable(tmp_path / "scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')

    def begin(trainer: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        executable(tmp_path / "alphastream", f"#!/bin/bash\ncd {tmp_path}\n{trainer}\n")
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ALPHASTREAM": str(tmp_path / "alphastream"),
            "SLURM_JOB_ID": "42",
            "RETRY_SECONDS": "0",
            **variables,
        }
        command = ["bash", str(SCRIPT), *(arguments or ("run.toml", "--run", "RUN"))]
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


def test_before_the_time_limit_the_run_saves_and_the_job_is_queued_again(cluster: Cluster) -> None:
    job = cluster.begin(TRAINS)
    reads(job, "training")
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 143
    assert "stopped by TERM" in output
    assert "saved" not in output, "USR1 would have let it go on"
    assert cluster.asked() == ["requeue 42"]


def test_a_cancelled_job_is_not_queued_again(cluster: Cluster) -> None:
    job = cluster.begin(TRAINS)
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


def test_without_arguments_it_says_what_to_give() -> None:
    ended = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "usage: sbatch" in ended.stderr


def test_it_asks_slurm_for_the_signal_in_time_and_for_a_requeue() -> None:
    asked = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= set(asked)
