"""A long run of the demo's model, watched from outside: `python -m tests.soak --hours 2`.

Trains what `alphastream demo` trains, with evaluations and checkpoints, while a Prometheus and two live pages ask it.
Memory, threads and descriptors are sampled from /proc into OUT/samples.jsonl; at the end each is judged by
`tests.soak.flatness`. Exit code 0 if the run ended well and all of them are flat.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from pipeline.preprocess import PreprocessConfig
from pipeline.sample import SampleConfig
from tests.soak.flatness import Flatness, flatness
from trainer.cli.data_progress import make_data, make_sample
from trainer.cli.demo import LOG_FORMAT
from trainer.console import Console

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20
SCRAPE_SECONDS = 5.0
ENDLESS_EPOCHS = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="training time")
    parser.add_argument("--rows", type=int, default=300_000, help="log lines to generate")
    parser.add_argument("--samples", type=int, default=720, help="how many to take, evenly")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="logs, shards, the run and the samples; new")
    given = parser.parse_args()
    run = given.out / "run"
    if run.exists():
        parser.error(f"{run} is there already; give another --out")
    make_run_data(given.out, given.rows)
    config = write_config(given.out, hours=given.hours)
    with (given.out / "trainer.log").open("wb") as log:
        command = [sys.executable, "-m", "trainer.cli", "train", str(config), "--run", str(run)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            samples = watch(process, given.out, every_seconds=given.hours * 3600 / given.samples)
        finally:
            process.terminate()
            code = process.wait(timeout=600)
    judgements = judged(samples)
    print(table(judgements, samples))
    print(f"exit code {code}; samples in {given.out / 'samples.jsonl'}, the trainer's words in {log.name}")
    return 0 if code == 0 and all(each.flat for each in judgements) else 1


def make_run_data(out: Path, rows: int) -> None:
    """The demo's logs and shards, unless they are there."""
    console = Console(quiet=True)
    make_sample(SampleConfig(out=out / "logs", rows=rows, days=5), console=console)
    make_data(PreprocessConfig(sources=(str(out / "logs"),), out=out / "data", format=LOG_FORMAT), console=console)


def write_config(out: Path, *, hours: float) -> Path:
    """The demo's settings, but for the budget and more frequent checkpoints; curves for TensorBoard as well."""
    settings = {
        "data": {"path": str((out / "data").absolute()), "batch_rows": 512},
        "model": {"preset": "dlrm-tiny"},
        "optimizer": {"lr": 1.0, "average": "ema"},
        "stepsize": {"policy": "auto"},
        "budget": {"epochs": ENDLESS_EPOCHS, "seconds": hours * 3600},
        "eval": {"every_steps": 600, "rows": 30_000},
        "checkpoint": {"every_seconds": max(10.0, hours * 3600 / 100)},
        "metrics": {"port": 0, "tensorboard_every_steps": 10},
    }
    path = out / "soak.toml"
    path.write_text(tomli_w.dumps(settings), encoding="utf-8")
    return path


def watch(process: subprocess.Popen[Any], out: Path, *, every_seconds: float) -> list[dict[str, float]]:
    """Samples until the process ends; in between it is asked as Prometheus and two browsers ask."""
    began, next_sample, samples = time.monotonic(), 0.0, []
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        while process.poll() is None:
            address = served_address(out / "trainer.log")
            steps = 0.0
            if address is not None:
                with suppress(OSError):  # it ends
                    steps = ask(address)
            seconds = time.monotonic() - began
            if address is not None and steps and seconds >= next_sample:
                with suppress(OSError):
                    samples.append({"seconds": seconds, "steps": steps, **of_process(process.pid), **of_disk(out)})
                    file.write(json.dumps(samples[-1]) + "\n")
                    file.flush()
                next_sample = seconds + every_seconds
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=min(SCRAPE_SECONDS, every_seconds))
    return samples


def served_address(log: Path) -> str | None:
    """Where the run says that its live page is; None before."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("live page "):
            return line.split()[2]
    return None


def ask(address: str) -> float:
    """One scrape, and the live page and its numbers, twice; gives the steps done by this process."""
    for path in ("", "status.json", "", "status.json"):
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            answer.read()
    with urllib.request.urlopen(address + "metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("alphastream_steps_total "):
                return float(line.split()[1])
    return 0.0


def of_process(pid: int) -> dict[str, float]:
    """Bytes of memory, threads and open descriptors.

    Raises: OSError if the process has ended.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "resident_bytes": 1024.0 * int(status["VmRSS"].split()[0]),
        "anonymous_bytes": 1024.0 * int(status["RssAnon"].split()[0]),
        "threads": float(status["Threads"]),
        "descriptors": float(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())),
    }


def of_disk(out: Path) -> dict[str, float]:
    """Bytes of the run's files: its records grow, and its checkpoints are replaced."""
    sizes = {"records": 0, "checkpoints": 0, "tensorboard": 0}
    for folder, _, names in os.walk(out / "run"):
        kind = next((kind for kind in ("checkpoints", "tensorboard") if kind in folder), "records")
        for name in names:
            with suppress(FileNotFoundError):
                sizes[kind] += Path(folder, name).stat().st_size
    return {f"{kind}_bytes": float(size) for kind, size in sizes.items()}


def judged(samples: list[dict[str, float]]) -> list[Flatness]:
    """Memory may grow by 2 % and 8 MiB, for the allocator's pools and the live page's curves; nothing else may."""
    seconds = [sample["seconds"] for sample in samples]
    limits = {
        "resident_bytes": (8 * MEBIBYTE, 0.02),
        "anonymous_bytes": (8 * MEBIBYTE, 0.02),
        "threads": (0.0, 0.0),
        "descriptors": (0.0, 0.0),
        "checkpoints_bytes": (0.0, 0.5),
    }
    return [
        flatness(name, seconds, [sample[name] for sample in samples], allowed=allowed, allowed_share=share)
        for name, (allowed, share) in limits.items()
    ]


def table(judgements: list[Flatness], samples: list[dict[str, float]]) -> str:
    """The figures as Markdown."""
    first, last = samples[0], samples[-1]
    seconds, steps = last["seconds"] - first["seconds"], last["steps"] - first["steps"]
    lines = [
        f"{seconds / 3600:.2f} h, {steps:,.0f} steps, {len(samples)} samples; records "
        f"{(last['records_bytes'] - first['records_bytes']) / max(steps, 1):.0f} bytes a step",
        "",
        "| | first third | last third | an hour | |",
        "|---|---|---|---|---|",
    ]
    for each in judgements:
        scale, unit = (MEBIBYTE, " MiB") if each.name.endswith("_bytes") else (1, "")
        name = each.name.removesuffix("_bytes").replace("_", " ")
        numbers = [f"{value / scale:,.1f}{unit}" for value in (each.first, each.last)]
        lines.append(
            f"| {name} | {' | '.join(numbers)} | {each.per_hour / scale:+,.2f}{unit} | "
            f"{'flat' if each.flat else 'GROWS'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
