"""The main job end to end on generated logs: sample, preprocess, train with α* applied, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.preprocess import PreprocessConfig
from pipeline.sample import SampleConfig
from trainer.cli.data_progress import make_data, make_sample
from trainer.config import Config, config_from

if TYPE_CHECKING:
    from trainer.console import Console
    from trainer.loop import Stop

FIRST_GUESS = 1.0
"""Some hundred times too long, to show that it does not matter."""
LOG_FORMAT = "criteo-kaggle"
"""Buckets enough for the many values of every column; those of the 1TB log would let some columns' values collide."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The main job on generated logs, on this machine: sample, preprocess, train with α* applied, report.

    Example: alphastream demo --out demo
    """

    out: Path = Path("demo")
    """Folder for the logs, the shards and the run; running again continues there."""
    rows: int = 300_000
    """Log lines to generate."""
    port: int = 0
    """TCP port of the metrics and the live page while it trains; 0 takes any free one."""


def run_demo(config: DemoConfig, *, console: Console) -> Stop:
    """Runs what is not done yet; returns how the training ended.

    Raises: what `write_sample`, `preprocess`, `train` and `write_report` raise.
    """
    from trainer.job import train
    from trainer.loop import Stop
    from trainer.report import write_report

    logs, data, run = config.out / "logs", config.out / "data", config.out / "run"
    console.say("1/4 sample: a click log with the shape of Criteo's, and a known best loss")
    make_sample(SampleConfig(out=logs, rows=config.rows, days=5), console=console)
    console.say("2/4 preprocess: TSV to Parquet shards")
    make_data(PreprocessConfig(sources=(str(logs),), out=data, format=_format_of(data)), console=console)
    console.say(
        f"3/4 train: one epoch of dlrm-tiny; α* finds the learning rate, whatever the first guess ({FIRST_GUESS:g})"
    )
    stop = train(_training(data, config.port), run, console=console)
    if stop is Stop.INTERRUPTED:
        console.say(f"interrupted; nothing is lost: the same command continues in {config.out}")
        return stop
    console.say("4/4 report")
    page = write_report(run)
    console.say(f"report         {page.resolve().as_uri()}")
    console.say(f"run directory  {run.resolve()}")
    console.say(f"metrics        {(run / 'metrics.prom').resolve()} (the last scrape; live while a run trains)")
    return stop


def _format_of(data: Path) -> str:
    """The format that the shards are in already, which an earlier version may have made, or are to be made in."""
    from pipeline.shards import Manifest

    try:
        return Manifest.load(data).format.name
    except InputError:  # not made yet, or not to its end
        return LOG_FORMAT


def _training(data: Path, port: int) -> Config:
    return config_from(
        {
            "data": {"path": str(data), "batch_rows": 512},
            "model": {"preset": "dlrm-tiny"},
            "optimizer": {"lr": FIRST_GUESS, "average": "ema"},
            "stepsize": {"policy": "auto"},
            "budget": {"epochs": 1},
            "eval": {"every_steps": 150},
            "metrics": {"port": port},
        },
        where="demo",
    )
