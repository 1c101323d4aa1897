"""A process that preprocesses in children, which may be killed at any moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Forks a child for every line of input (source, output, n, before|after|time, make|append). The child preprocesses and
# dies by SIGKILL before or after the n-th of the calls that make output durable or visible, or n microseconds after its
# birth; at n = 0 it lives. Answers a line: the child's exit code (negative for a signal) and how many calls it made.
# Forking spares each child the imports.
NURSERY = """
import os, pathlib, signal, sys, time
from pipeline.preprocess import PreprocessConfig, preprocess

def preprocess_and_die(source, out, fatal, moment, append):
    calls = 0
    def deadly(function):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == fatal and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    os.fsync, os.unlink, os.rmdir = deadly(os.fsync), deadly(os.unlink), deadly(os.rmdir)
    pathlib.Path.replace, pathlib.Path.open = deadly(pathlib.Path.replace), deadly(pathlib.Path.open)
    options = dict(out=pathlib.Path(out), rows_per_shard=500, max_rejects="9", append=append)
    preprocess(PreprocessConfig(sources=(source,), **options))
    return calls

# What is compiled is loaded once, here, for all children.
preprocess(PreprocessConfig(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), rows_per_shard=500, max_rejects="9"))
for line in sys.stdin:
    source, out, fatal, moment, verb = line.rstrip("\\n").split("\\t")
    fatal = int(fatal)
    count = 0 if moment == "time" else fatal
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writer, str(preprocess_and_die(source, out, count, moment, verb == "append")).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    if moment == "time":
        time.sleep(fatal / 1e6)
        os.kill(child, signal.SIGKILL)
    made = os.read(reader, 100).decode() or "0"
    os.close(reader)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), made, flush=True)
"""


class Nursery:
    """Runs preprocessing in children that may be killed."""

    def __init__(self, log: Path, out: Path) -> None:
        command = [sys.executable, "-c", NURSERY, str(log), str(out)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, log: Path, out: Path, fatal: int, moment: str, *, append: bool = False) -> tuple[int, int]:
        """Exit code and how many of the calls that matter were made."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{log}\t{out}\t{fatal}\t{moment}\t{'append' if append else 'make'}\n")
        self._process.stdin.flush()
        code, calls = self._process.stdout.readline().split()
        return int(code), int(calls)

    def close(self) -> None:
        self._process.communicate()
