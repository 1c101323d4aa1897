"""A run on two hosts, by torchrun on each: `python -m tests.faults.hosts`, as root, on Linux with `ip`.

The hosts are network namespaces of this machine, joined by a cable of their own; they share its disk, as nodes do.
Once nothing disturbs the run, once a rank of the second host is killed and torchrun starts all again on both hosts,
once the first host's torchrun is told to stop, and once the cable is pulled. Each run is then continued where it is not
over, and ends as two ranks on one host, bit for bit. Prints a line for each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fork_server import ForkServer
from tests.faults.launched_ranks import MOST_SECONDS, ROOT
from tests.faults.rank_runs import LONG, RankRuns, events, same_end

HOSTS = ("alphastream-a", "alphastream-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29_571


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


@contextmanager
def hosts() -> Iterator[None]:
    """Two hosts that see one another, and nothing else."""
    take_down()
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
        yield
    finally:
        take_down()


def take_down() -> None:
    for host in HOSTS:
        ip("netns", "del", host, check=False)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """torchrun on both hosts, a rank on each."""

    run: Path
    agents: tuple[subprocess.Popen[bytes], ...]
    logs: tuple[Path, ...]

    def said(self) -> str:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)

    def ranks(self, host: int) -> list[int]:
        """Processes of a host that train."""
        pid = self.agents[host].pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        children = children.read_text().split() if children.exists() else []  # none of one that has ended
        return [int(child) for child in children if b"trainer.cli" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def last_checkpoint(self) -> int:
        names = (path.name for path in (self.run / "checkpoints").glob("step-*"))
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def wait_until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + MOST_SECONDS
        while not condition():
            assert any(agent.poll() is None for agent in self.agents), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def end(self) -> list[int]:
        """Exit codes of both torchruns."""
        return [agent.wait(timeout=MOST_SECONDS) for agent in self.agents]


@contextmanager
def launched(config: Path, run: Path, *more: str) -> Iterator[Launch]:
    logs = tuple(run.with_name(f"{run.name}-{host}.log") for host in HOSTS)
    agents = []
    for host, address, log in zip(HOSTS, ADDRESSES, logs, strict=True):
        with log.open("wb") as out:
            torchrun = [
                *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"),
                *("--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", run.name, "--local-addr", address),
                *(
                    "--rdzv-conf",
                    f"is_host={int(host == HOSTS[0])}",
                ),  # they have one name, by which it is told elsewhere
                *("-m", "--", "trainer.cli", "train", str(config), "--run", str(run), *LONG, *more),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
            agents.append(
                subprocess.Popen(torchrun, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
            )
    try:
        yield Launch(run=run, agents=tuple(agents), logs=logs)
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()


def undisturbed(runs: RankRuns, run: Path) -> str:
    with launched(runs.config, run) as launch:
        codes = launch.end()
        assert codes == [0, 0], launch.said()
    return f"torchrun gave {codes}"


def killed(runs: RankRuns, run: Path) -> str:
    with launched(runs.config, run) as launch:
        launch.wait_until(launch.last_checkpoint)
        os.kill(launch.ranks(1)[0], signal.SIGKILL)
        codes = launch.end()
        assert codes == [0, 0], launch.said()
    resumed = [event["step"] for event in events(run, "resume")]
    assert len(resumed) == 1, resumed
    return f"torchrun gave {codes}, and had started both ranks again from step {resumed[0]}"


def stopped(runs: RankRuns, run: Path) -> str:
    with launched(runs.config, run) as launch:
        launch.wait_until(launch.last_checkpoint)
        launch.agents[0].send_signal(signal.SIGTERM)
        codes = launch.end()
        [stop] = events(run, "stop")
        assert (stop["step"], stop["reason"]) == (launch.last_checkpoint(), "interrupted"), launch.said()
    return f"torchrun gave {codes}; stopped and saved at step {stop['step']}"


def cut_off(runs: RankRuns, run: Path) -> str:
    with launched(runs.config, run, "--ranks.timeout_seconds", "5", "--ranks.save_timeout_seconds", "5") as launch:
        launch.wait_until(launch.last_checkpoint)
        step = launch.last_checkpoint()
        ip("-n", HOSTS[1], "link", "set", "cable", "down")
        launch.wait_until(lambda: "rank 0 of 2 at step" in launch.said() and "rank 1 of 2 at step" in launch.said())
        launch.wait_until(lambda: not launch.ranks(0) and not launch.ranks(1))
    ip("-n", HOSTS[1], "link", "set", "cable", "up")
    return f"cut off after the checkpoint of step {step}; both ranks said so and ended"


def main() -> int:
    """Prints a line for each way a run is disturbed; what goes wrong is raised."""
    if os.geteuid():
        print("python -m tests.faults.hosts: must be root, to make network namespaces", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="hosts-") as name, ForkServer() as server, hosts():
        runs = RankRuns(server, Path(name))
        whole = runs.ended(Path(name) / "whole-long", *LONG)
        for disturb in (undisturbed, killed, stopped, cut_off):
            run = Path(name) / disturb.__name__
            told = disturb(runs, run)
            same_end(runs.ended(run, *LONG), whole)
            print(f"{disturb.__name__}: {told}; in the end as two ranks on one host, bit for bit", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
