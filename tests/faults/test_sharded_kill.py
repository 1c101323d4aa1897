"""kill -9 of one of the ranks that write a checkpoint together: the old one or the new one is whole, nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVERY = os.environ.get("ALPHASTREAM_FAULT_EVERY", "3")
"""A kill comes at every so many-th call of the system; 1: at each."""

ONE_OF_TWO_DIES = """
import gc, json, os, signal, socket, struct, sys, torch
from pathlib import Path
from trainer.records import RowRange, Shares, checkpoint_files, load_latest, write_checkpoint

class Pair:
    # two ranks at the ends of a connection, which breaks when one of them is gone
    ranks = 2
    def __init__(self, rank, end):
        self.rank, self.stream = rank, end.makefile("rwb")
    def gather(self, value):
        mine = json.dumps(value).encode()
        self.stream.write(struct.pack("<q", len(mine)) + mine)
        self.stream.flush()
        head = self.stream.read(8)
        if len(head) < 8:
            raise ConnectionError("the other rank is gone")
        other = json.loads(self.stream.read(struct.unpack("<q", head)[0]))
        return [value, other] if self.rank == 0 else [other, value]

RANGES = (RowRange(0, 3, 5), RowRange(3, 5, 5))

def save(run, step, group):
    mine = RANGES[group.rank]
    table = torch.arange(5.0)[mine.start : mine.stop] + step
    files = checkpoint_files({"model": {"table": table, "top": torch.full((3,), float(step))}}, {"step": step})
    write_checkpoint(run, step, files, keep=1, shares=Shares(group=group, rows={("model", "table"): mine}))

def train(run, group, *, die_at, told):
    calls = 0
    def count(event, _):
        nonlocal calls
        if event.split(".")[0] in ("os", "open", "shutil"):
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    if die_at:
        sys.addaudithook(count)
    try:
        for step in (1, 2):
            save(run, step, group)
            os.write(told, bytes([step]))
    except OSError as error:  # what the end of the other rank gives
        os._exit(74 if isinstance(error, ConnectionError) else 1)
    os._exit(0)

def trial(run, dying, die_at):
    # the statuses of both ranks, and the newest step that either was told to be saved
    ends, (heard, told), children = socket.socketpair(), os.pipe(), []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            ends[1 - rank].close()
            train(run, Pair(rank, ends[rank]), die_at=die_at if rank == dying else 0, told=told)
        children.append(child)
    os.close(told)
    for end in ends:
        end.close()
    statuses = [os.waitpid(child, 0)[1] for child in children]
    steps = list(os.read(heard, 100))
    os.close(heard)
    return statuses, max(steps, default=0)

torch.set_num_threads(1)
gc.disable()  # which would write to all that a child shares with this process
place, every = Path(sys.argv[1]), int(sys.argv[2])
for dying in (0, 1):
    die_at = 0
    while True:
        die_at += every
        run = place / str(dying) / str(die_at)
        statuses, last = trial(run, dying, die_at)
        found = load_latest(run)
        step = found.step if found else 0
        where = (dying, die_at, statuses, last, step)
        assert last <= step <= last + 1, where
        if found:
            assert found.damaged == () and found.state == {"step": step}, where
            assert torch.equal(found.tensors["model"]["table"], torch.arange(5.0) + step), where
            assert torch.equal(found.tensors["model"]["top"], torch.full((3,), float(step))), where
        if statuses[dying] == 0:
            assert statuses[1 - dying] == 0 and step == 2, where
            break
        assert os.WTERMSIG(statuses[dying]) == signal.SIGKILL, where
        # the last gather may have been over, or the error of a rank that found its folder gone
        assert os.waitstatus_to_exitcode(statuses[1 - dying]) in (0, 74), where
        # the next save sweeps what was left
        write_checkpoint(run, 9, checkpoint_files({}, {}), keep=1)
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000009"], where
    print(die_at)
"""


def test_kill_9_of_a_rank_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ONE_OF_TWO_DIES, str(tmp_path), EVERY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    # of two saves: rank 0 makes, writes, syncs, names and removes; the other writes and syncs its rows
    first, other = map(int, ended.stdout.split())
    assert first > 60
    assert other > 10
