"""Peak memory of `alphastream report` on very long runs, and whether its figures are those of what was recorded.

Each run is written step by step by the project's own record files, thinned by their rules beside it, with the figures
to come kept exactly. The report is then made in a process of its own. Memory is compared with that on the shortest run.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.synthetic_run import PHASE_SECONDS, ROWS
from trainer.config import config_from
from trainer.job.run_directory import RunDirectory

MEBIBYTE = 1 << 20
CHUNK = 1 << 16
SAVE_STEPS, EVALUATION_STEPS, HORIZON_STEPS = 50_000, 20_000, 500
EXPECTED = "expected.json"
REPORT = """
import sys
from trainer.cli import main
code = main(["report", sys.argv[1]])
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
sys.exit(code)
"""
"""Linux; what a parent is told of its child's peak begins with its own."""
ROUNDED = 0.01
"""Of a median or percentile, of what is merged into bins."""


@dataclass(kw_only=True)
class Exact:
    """What the report should say."""

    rows: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASE_SECONDS, 0.0))
    rates: float = 0.0
    lowest_rate: float = math.inf
    highest_rate: float = 0.0
    estimates: int = 0
    negative: int = 0
    slope: float = 0.0
    curvature: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    best: tuple[float, int] = (math.inf, -1)

    def of(self, step_seconds: np.ndarray) -> dict[str, float]:
        """By name of the figure in summary.csv, or of a phase or an outcome."""
        steps = len(step_seconds)
        return {
            "steps": steps,
            "rows": self.rows,
            "training time": self.seconds,
            "step time, median": float(np.quantile(step_seconds, 0.5)),
            "step time, 99th percentile": float(np.quantile(step_seconds, 0.99)),
            "learning rate applied, mean": self.rates / steps,
            "learning rate applied, lowest": self.lowest_rate,
            "learning rate applied, highest": self.highest_rate,
            "best validation loss": self.best[0],
            "best validation loss at step": self.best[1],
            "α* estimates with a number, at the beginning": self.estimates,
            "α* estimates that are negative, at the beginning": self.negative,
            "α*, pooled, at the beginning": -self.slope / self.curvature,
            **{f"phase {name}": seconds for name, seconds in self.phases.items()},
            **{f"outcome {name}": count for name, count in self.outcomes.items()},
        }


def step_records(steps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A falling noisy loss, a cosine, phases that sum to the step's time; made a chunk at a time."""
    names = list(PHASE_SECONDS)
    means = np.array(list(PHASE_SECONDS.values()))
    for first in range(0, steps, CHUNK):
        count = min(CHUNK, steps - first)
        jitter = rng.lognormal(0, 0.25, (count, len(names))) * means
        losses = 0.45 + 0.03 * rng.normal(size=count)
        for place in range(count):
            step, phases = first + place, jitter[place].tolist()
            rate = 1e-3 * (0.505 + 0.495 * math.cos(math.pi * step / steps))
            yield {
                "step": step,
                "epoch": 4 * step // steps,
                "start": step * ROWS % (steps * ROWS // 4),
                "rows": ROWS,
                "learning_rate": rate,
                "scheduled_rate": rate,
                "seconds": sum(phases),
                "phases": dict(zip(names, phases, strict=True)),
                "loss": float(losses[place]),
            }


def estimate_record(record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    rate = record["learning_rate"]
    curvature = rate**2 * 50 * rng.lognormal(0, 0.3)
    relative = 2.0 * (1 + rng.normal(0, 2.0))
    numbers = {
        "slope": -curvature * relative,
        "curvature": curvature,
        "relative": relative,
        "absolute": relative * rate,
    }
    return {
        "step": record["step"],
        "age": 0,
        "outcome": "ok" if relative > 0 else "ascent",
        "learning_rate": rate,
        "standard_error": 0.4 * abs(relative),
        **numbers,
    }


def write_long_run(run: Path, steps: int, *, interval: int) -> dict[str, float]:
    """The run, with an estimate every `interval` steps; gives what its report should say."""
    config = config_from({"data": {"path": "DATA"}, "model": {"table_rows": 64}}, where="bench").resolved()
    rng, exact, step_seconds = np.random.default_rng(0), Exact(), np.empty(steps)
    with RunDirectory(run, config) as directory:
        directory.begin(config, records={})
        directory.event("start", step=0)
        records = directory.records
        for record in step_records(steps, rng):
            step = record["step"]
            records["steps"].append(record)
            step_seconds[step] = record["seconds"]
            exact.rows += ROWS
            exact.seconds += record["seconds"]
            exact.rates += record["learning_rate"]
            exact.lowest_rate = min(exact.lowest_rate, record["learning_rate"])
            exact.highest_rate = max(exact.highest_rate, record["learning_rate"])
            for name, seconds in record["phases"].items():
                exact.phases[name] += seconds
            if step % interval == 0:
                estimate = estimate_record(record, rng)
                records["alpha"].append(estimate)
                exact.estimates += 1
                exact.negative += estimate["relative"] < 0
                exact.slope += estimate["slope"]
                exact.curvature += estimate["curvature"]
                exact.outcomes[estimate["outcome"]] = exact.outcomes.get(estimate["outcome"], 0) + 1
            done = step + 1
            if done % HORIZON_STEPS == 0:
                records["horizon"].append({**estimate_record(record, rng), "horizon": max(done // 8, 2)})
            if done % EVALUATION_STEPS == 0:
                for split, offset in (("validation", 0.0), ("test", 0.01)):
                    loss = 0.46 + 0.02 / (1 + done / steps) + 0.001 * rng.normal()
                    evaluation = {"step": done, "split": split, "loss": loss + offset, "auc": 0.78, "rows": 13_000}
                    records["evals"].append({**evaluation, "seconds": 0.8, "training_seconds": exact.seconds})
                    if split == "validation":
                        exact.best = min(exact.best, (loss, done))
                directory.event("pause", step=done, phases={"evaluation": 1.6})
            if done % SAVE_STEPS == 0:
                directory.lengths()
                directory.event("checkpoint", step=done, checkpoint=f"step-{done:08d}")
            if done % 1000 == 0:
                directory.flush()
            directory.thin(done=done)
        directory.event("stop", step=steps, reason="budget")
        notices = [notice for file in records.values() for notice in file.take_notices()]
        assert not notices, notices
    return exact.of(step_seconds)


def reported(run: Path) -> tuple[dict[str, float], int]:
    """What the report says, by the names of `Exact.of`, and the peak of its resident memory in bytes."""
    done = subprocess.run([sys.executable, "-c", REPORT, str(run)], stdout=subprocess.PIPE, text=True, check=True)
    peak = 1024 * int(done.stdout.split()[-2])
    found: dict[str, float] = {}
    for stem, prefix in (("summary", ""), ("phases", "phase "), ("outcomes", "outcome ")):
        with (run / "report" / f"{stem}.csv").open(encoding="utf-8", newline="") as file:
            for row in list(csv.reader(file))[1:]:
                if row[1]:
                    found[prefix + row[0]] = float(row[1])
    return found, peak


def differences(found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    """Figures that are not what was recorded: sums and extremes to rounding, quantiles to their bins."""
    wrong = []
    for name, value in expected.items():
        allowed = ROUNDED if name.startswith("step time") else 1e-9
        if not math.isclose(found.get(name, math.nan), value, rel_tol=allowed):
            wrong.append(f"{name}: {found.get(name)} instead of {value}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100_000, 1_000_000], help="lengths of the runs")
    parser.add_argument("--interval", type=int, default=8, help="steps from one estimate of α* to the next")
    parser.add_argument("--out", type=Path, help="keeps the runs here, and reports those that are there; else they go")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="report-") as name:
        out, rows, wrong, first = given.out or Path(name), [], 0, 0
        for steps in given.steps:
            run = out / f"run-{steps}"
            if not (run / EXPECTED).exists():
                expected = write_long_run(run, steps, interval=given.interval)
                (run / EXPECTED).write_text(json.dumps(expected), encoding="utf-8")
            expected = json.loads((run / EXPECTED).read_text(encoding="utf-8"))
            size = sum(path.stat().st_size for path in run.glob("*.jsonl"))
            found, peak = reported(run)
            problems = differences(found, expected)
            print(*problems, sep="\n", file=sys.stderr)
            wrong, first = wrong + len(problems), first or peak
            rows.append(f"| {steps:,} | {size / MEBIBYTE:.0f} | {peak / MEBIBYTE:.0f} | {peak / first:.2f} |")
        print("| steps | records, MiB | peak of `report`, MiB | × the first |\n|---|---|---|---|", *rows, sep="\n")
    print(f"{len(given.steps)} runs, {wrong} figures wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
