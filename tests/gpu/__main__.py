"""All that needs a GPU in one call: `python -m tests.gpu`: the tests marked gpu, then the benchmarks, then a report.

Needs a CUDA machine with Python 3.11 or newer, torch, and what `tests/gpu/wheels.txt` lists; no network. Writes
`gpu-results/figures.json` and `gpu-results/figures.md`, within `--seconds`. `--device cpu` shows on any machine that
the call works: the tests skip themselves and the benchmarks take tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
TESTS_SHARE = 0.6
"""Of the seconds there are, at most so many go to the tests."""
PARTS = ("steps", "parts", "optimizer", "alpha", "feeds")
REPORTED = ("torch", "triton", "numpy", "numba", "pyarrow", "nvidia-dali-cuda130")
LEAST_SECONDS = 10.0
"""Less is not worth starting a benchmark for."""


def main() -> int:
    """The exit code: 0 if no test failed and every benchmark ran to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0, help="wall time for everything")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    arguments = parser.parse_args()
    began = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    report: dict[str, Any] = {"command": ["python", "-m", "tests.gpu", *sys.argv[1:]], **machine()}
    report["tests"] = run_tests(out, seconds=TESTS_SHARE * arguments.seconds)
    write(out, report)
    report["benchmarks"] = {}
    for index, part in enumerate(PARTS):
        left = arguments.seconds - (time.monotonic() - began)
        share = left / (len(PARTS) - index)
        report["benchmarks"][part] = run_benchmark(part, out, device=arguments.device, seconds=share)
        write(out, report)
    print((out / "figures.md").read_text(encoding="utf-8"))
    whole = all(benchmark["ended"] == "whole" for benchmark in report["benchmarks"].values())
    wanted = "passed" if arguments.device == "cuda" else "all skipped"
    return 0 if report["tests"]["ended"] == wanted and whole else 1


def machine() -> dict[str, Any]:
    """When, and on what."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        gpus = []
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpus": gpus,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in REPORTED if (version := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def marked_files() -> list[str]:
    """The test files with a test for a GPU; others may need packages that are not here."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    by_device = ROOT / "tests" / "gpu"  # whose fixture `device` has the mark
    marked = (file for file in files if by_device in file.parents or "mark.gpu" in file.read_text(encoding="utf-8"))
    return [str(file.relative_to(ROOT)) for file in marked]


def run_tests(out: Path, *, seconds: float) -> dict[str, Any]:
    """Counts, and the names of those that failed or were skipped, with the reason."""
    junit = out / "tests.xml"
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider"]
    command += [f"--junitxml={junit}", *marked_files()]
    ended = _run(command, out / "tests.log", seconds=seconds, CUBLAS_WORKSPACE_CONFIG=":4096:8")
    outcome = {0: "passed", 1: "failed", None: f"stopped after {seconds:.0f} s"}.get(
        ended, f"pytest ended with {ended}"
    )
    found: dict[str, Any] = {"ended": outcome, "counts": {}, "failed": [], "skipped": []}
    if junit.is_file():
        suite = next(ElementTree.parse(junit).iter("testsuite"))
        found["counts"] = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        for case in suite.iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            for kind, names in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
                if (reason := case.find(kind)) is not None:
                    found[names].append(f"{name}: {_first_line(reason.get('message') or '')}")
        if outcome == "passed" and found["counts"]["skipped"] == found["counts"]["tests"]:
            found["ended"] = "all skipped"
    return found


def run_benchmark(part: str, out: Path, *, device: str, seconds: float) -> dict[str, Any]:
    """Its figures, also of one that failed or ran out of time, as far as it came."""
    figures = out / f"bench-{part}.json"
    figures.unlink(missing_ok=True)
    if seconds < LEAST_SECONDS:
        return {"ended": "not begun, no time was left", "figures": []}
    command = [sys.executable, "-m", "tests.bench.bench_gpu", "--part", part, "--device", device]
    ended = _run([*command, "--json", str(figures)], out / f"bench-{part}.log", seconds=seconds)
    outcome = {0: "whole", None: f"stopped after {seconds:.0f} s"}.get(ended, f"ended with {ended}")
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else []
    if outcome == "whole" and not found:
        outcome = "gave no figures"
    return {"ended": outcome, "figures": found, "command": ["python", *command[1:]]}


def _run(command: list[str], log: Path, *, seconds: float, **environment: str) -> int | None:
    """The exit code, None if it was stopped after `seconds`; what it printed is in `log`."""
    print(f"{' '.join(command[1:5])} ... (at most {seconds:.0f} s)", flush=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            return subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _first_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().splitlines()[0] if text.strip() else "")


def write(out: Path, report: dict[str, Any]) -> None:
    """The report as it stands, so that what comes later can take nothing of it away."""
    (out / "figures.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    tests = report["tests"]
    lines = [
        f"{report['date']}, {'; '.join(report['gpus']) or 'no GPU'}, {report['cores']} cores, Python "
        f"{report['python']}, {', '.join(f'{name} {version}' for name, version in report['versions'].items())}; "
        f"`{' '.join(report['command'])}`",
        "",
        f"Tests: {tests['ended']}; {', '.join(f'{count} {name}' for name, count in tests['counts'].items())}",
        *(f"- failed: {name}" for name in tests["failed"]),
        "",
        "| benchmark | rows | what | value | unit | peer |",
        "|---|---:|---|---:|---|---|",
    ]
    for part, benchmark in report.get("benchmarks", {}).items():
        for one in benchmark["figures"]:
            value = f"{one['value']:,.3f}"
            lines.append(
                f"| {part} | {one['rows']:,} | {one['what']} | {value} | {one['unit']} | {one['peer'] or ''} |"
            )
        if benchmark["ended"] != "whole":
            lines.append(f"| {part} | | {benchmark['ended']} (bench-{part}.log) | | | |")
    (out / "figures.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
