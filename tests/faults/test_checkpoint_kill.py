"""kill -9 while checkpoints are written: the newest one that was acknowledged, or a later one, is always whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from trainer.records import load_latest

ROOT = Path(__file__).parents[2]
EVERY = os.environ.get("ALPHASTREAM_FAULT_EVERY", "3")
"""A kill comes at every so many-th call of the system; 1: at each."""

WRITER = """
import sys, torch
from trainer.records import load_latest, save_checkpoint
run = sys.argv[1]
found = load_latest(run)
step = found.step if found else 0
while True:
    step += 1
    weight = torch.full((200_000,), float(step))
    save_checkpoint(run, step, tensors={"model": {"weight": weight}}, state={"step": step}, keep=2)
    print(step, flush=True)
"""


def test_kill_9_never_costs_an_acknowledged_checkpoint(tmp_path: Path) -> None:
    chance = random.Random(0)
    last = 0
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline())]
        # anywhere within the writing of the next one: the moment of the kill is what varies, nothing waits on it
        time.sleep(chance.random() * 0.02)
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        found = load_latest(tmp_path)
        assert found is not None
        assert found.damaged == ()
        assert found.step >= acknowledged[-1] > last
        assert found.state == {"step": found.step}
        assert torch.equal(found.tensors["model"]["weight"], torch.full((200_000,), float(found.step)))
        last = acknowledged[-1]


DIES_IN_THE_THREAD = """
import gc, os, signal, sys, threading, torch
from pathlib import Path
from trainer.job.save_thread import SaveThread
from trainer.records import HostMemory, load_latest, write_checkpoint

def train(run, *, die_at):
    # saves steps 1 to 3 while the weights move on; the thread kills the process at its n-th call of the system
    calls = 0
    def count(event, _):
        nonlocal calls
        if threading.current_thread().name == "checkpoint" and event.split(".")[0] in ("os", "open", "shutil"):
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    weight, memory = torch.zeros(5000), HostMemory()
    with SaveThread() as saves:
        for step in range(1, 4):
            weight += 1
            files = memory.snapshot({"model": {"weight": weight}}, {"step": step})
            saves.begin(step, lambda: write_checkpoint(run, step, saves.until_abandoned(files), keep=2))
            weight += 0.5  # the next step, while this one is written
            weight -= 0.5
            outcome = saves.take(wait=True)
            assert outcome.error is None, outcome.error
            os.write(acknowledged, bytes([step]))
    return calls

torch.set_num_threads(1)
gc.disable()  # which would write to all that a child shares with this process
place, every, die_at = Path(sys.argv[1]), int(sys.argv[2]), 0
while True:
    die_at += every
    run = place / str(die_at)
    told, acknowledged = os.pipe()
    child = os.fork()
    if child == 0:
        train(run, die_at=die_at)
        os._exit(0)
    os.close(acknowledged)
    _, status = os.waitpid(child, 0)
    steps = list(os.read(told, 100))
    os.close(told)
    found = load_latest(run)
    last = steps[-1] if steps else 0
    step = found.step if found else 0
    assert last <= step <= last + 1, (die_at, last, step)
    if found:
        assert found.damaged == () and found.state == {"step": step}, die_at
        assert torch.equal(found.tensors["model"]["weight"], torch.full((5000,), float(step))), die_at
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    # the next save sweeps what was left
    write_checkpoint(run, 9, HostMemory().snapshot({}, {}), keep=1)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000009"], die_at
print(die_at)
"""


def test_kill_9_at_any_call_of_the_thread_leaves_whole_checkpoints(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DIES_IN_THE_THREAD, str(tmp_path), EVERY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    # making, writing, syncing, naming and removing, of three saves
    assert int(ended.stdout) > 45
