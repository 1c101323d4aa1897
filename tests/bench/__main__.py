"""Runs the benchmarks one after the other: `python -m tests.bench [NAME ...]`, by default all but ASKED_FOR."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ASKED_FOR = {"fresh", "rounding"}
"""Run where they are named alone: many whole trainings."""


def main(names: list[str]) -> int:
    """Each benchmark in a process of its own, so that none sees another's memory or threads; the worst exit code."""
    known = {path.stem.removeprefix("bench_"): path.stem for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    worst = 0
    for name in names or sorted(known.keys() - ASKED_FOR):
        print(f"\n== {name} ==", flush=True)
        command = [sys.executable, "-m", f"tests.bench.{known[name]}"]
        worst = max(worst, subprocess.run(command, cwd=HERE.parents[1], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
