"""kill -9 while checkpoints are written: the newest one that was acknowledged, or a later one, is always whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from trainer.records import load_latest

ROOT = Path(__file__).parents[2]

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
    for _ in range(4):
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
