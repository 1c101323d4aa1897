"""Page faults and processor time of a training step with freed memory kept against given back, and the peaks.

dlrm-small on skewed ids, its table moved whole; a process each, by turns, since the allocator's setting stays.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.bench_table import Ours, batches
from trainer.job.allocator import keep_freed_memory

NAMES = ("page faults", "processor time", "processor time of the system", "peak memory")


def measure(*, kept: bool, table: str, table_rows: int, rows: int, steps: int) -> None:
    """Prints what a step takes after some, in the order of `NAMES`."""
    subject, stream = Ours(table_rows, table), batches(rows, table_rows, seed=1)
    if kept:
        keep_freed_memory()
    made = [next(stream) for _ in range(4)]
    for batch in made:
        subject.step(batch)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for step in range(steps):
        subject.step(made[step % len(made)])
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    print((after.ru_minflt - before.ru_minflt) / steps, (user + system) / steps, system / steps, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=["dense", "lazy"], default="dense")
    parser.add_argument("--table-rows", type=int, default=262_144)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=["kept", "given-back"], help="only print the numbers of one way")
    given = parser.parse_args()
    sizes = {"table": given.table, "table_rows": given.table_rows, "rows": given.rows, "steps": given.steps}
    if given.alone:
        measure(kept=given.alone == "kept", **sizes)
        return
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    found: list[list[float]] = []
    for _ in range(given.rounds):
        both = []
        for way in ("kept", "given-back"):
            command = [sys.executable, "-m", "tests.bench.bench_memory", "--alone", way, *options]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            both.append([float(number) for number in printed.splitlines()[-1].split()])
        found.append([kept / max(given_back, 1e-9) for kept, given_back in zip(*both, strict=True)])
    print(f"{given.table} table of {given.table_rows:,} × 128, {given.rows} rows a step: kept over given back")
    for name, values in zip(NAMES, zip(*found, strict=True), strict=True):
        print(f"  {name}: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
