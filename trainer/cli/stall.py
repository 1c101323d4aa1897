"""The verb stall: three trials, and a table of where a step's time goes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from trainer.cli.arguments import UsageError, parse_arguments, parse_first
from trainer.cli.settings import asks_for_help, current_arguments, settings_for_help
from trainer.cli.tables import print_table
from trainer.config import Config, load_config
from trainer.console import Console

if TYPE_CHECKING:
    from trainer.stall import StallReport


@dataclass(frozen=True, kw_only=True)
class StallOptions:
    """What comes before the settings."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")]
    """TOML file of a run's settings, by section."""
    steps: int | None = None
    """Steps measured in each trial; by default as many as the first makes in --seconds, in whole shuffle windows."""
    seconds: float = 10.0
    """About how long each of the three trials is measured; not for --steps."""
    warmup_steps: int = 10
    """Steps at the start of each trial that are not measured."""
    json: bool = False
    """One JSON object instead of tables."""


@dataclass(frozen=True, kw_only=True)
class StallArguments(StallOptions):
    """Find out where a step's time goes, from three trials of the same steps: rows from the disk (page cache dropped),
    from the page cache, and one pair on the device again and again. Nothing is written. With a remote data.path the
    first trial starts with an empty cache of its own, removed afterwards, so its rows come from the store; the others
    have theirs from the cache, which keeps what they fetch.

    Every --section.key below is also a key of the TOML file; given here, it overrides the file's. Defaults are those of
    preset dlrm-tiny; None stands for no value.

    Example: alphastream stall run.toml --seconds 5
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def stall_verb(arguments: list[str]) -> int:
    """`alphastream stall CONFIG.toml [--section.key value]`."""
    if asks_for_help(arguments):
        default = StallArguments(config=tyro.MISSING, settings=settings_for_help())
    else:
        arguments = current_arguments(arguments, "stall")
        known = parse_first(StallOptions, arguments, "stall")
        default = StallArguments(config=known.config, settings=load_config(known.config))
    given = parse_arguments(StallArguments, arguments, "stall", default=default, underscores=True)
    _check(given)
    from trainer.stall import measure_stall

    report = measure_stall(
        given.settings,
        steps=given.steps,
        seconds=given.seconds,
        warmup_steps=given.warmup_steps,
        console=Console(),
    )
    if given.json:
        print(json.dumps(as_json(report)))
    else:
        print_report(report)
    return 0


def _check(options: StallOptions) -> None:
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps is {options.steps}; give a whole number of at least 1")
    if options.warmup_steps < 0:
        raise UsageError(f"--warmup_steps is {options.warmup_steps}; give 0 or more")
    if not options.seconds > 0:
        raise UsageError(f"--seconds is {options.seconds}; give a positive number")


def as_json(report: StallReport) -> dict[str, Any]:
    """The report as plain JSON values, with what follows from its fields; a trial is called a run there."""
    trials = [
        {
            **asdict(trial),
            "rows_per_second": trial.rows_per_second,
            "computing_per_step": trial.computing_per_step,
            "bottleneck": trial.bottleneck.stage if trial.bottleneck else None,
        }
        for trial in report.trials
    ]
    speedups = [
        {"run" if key == "trial" else key: value for key, value in asdict(gain).items()} for gain in report.speedups
    ]
    return {
        "runs": trials,
        "parts": [asdict(component) for component in report.components],
        "speedups": speedups,
        "no_cold_run": report.no_cold_trial,
        "verdict": report.verdict,
    }


def print_report(report: StallReport) -> None:
    """Tables on standard output; times in milliseconds a step."""
    first = report.trials[0]
    print(f"{report.verdict}\n\n{first.steps:,} steps of {first.rows / first.steps:,.0f} rows; ms are of one step")
    if report.no_cold_trial:
        print(f"no cold trial: {report.no_cold_trial}; what is to be fetched is not seen here")
    print_table(
        ("trial", "ms", "±", "rows/s", "ms waiting", "ms computing"),
        [
            (
                trial.name,
                _ms(trial.seconds_per_step),
                _ms(trial.standard_error),
                f"{trial.rows_per_second:,.0f}",
                _ms(trial.waiting_per_step),
                _ms(trial.computing_per_step),
            )
            for trial in report.trials
        ],
    )
    print_table(
        ("part of a step", "ms", "±", "share", "ms waiting", "ms computing"),
        [
            (
                component.name,
                _ms(component.seconds_per_step),
                _ms(component.standard_error),
                f"{component.share:.1%}",
                _ms(component.waiting_per_step),
                _ms(component.seconds_per_step - component.waiting_per_step),
            )
            for component in report.components
        ],
    )
    print_table(
        ("stage", *(f"{trial.name} {what}" for trial in report.trials[1:] for what in ("thread ms", "threads busy"))),
        _stage_rows(report),
    )
    if not report.clear:
        return
    print_table(
        ("speed-up of", "by", "predicted", "measured"),
        [
            (
                f"{gain.trial} trial",
                gain.change,
                f"{gain.predicted:.2f}×",
                f"{gain.measured:.2f}×" if gain.measured else "",
            )
            for gain in report.speedups
        ],
    )


def _stage_rows(report: StallReport) -> list[tuple[str, ...]]:
    """A row for each stage of the pipeline, the bottleneck of each trial marked."""
    rows = []
    for stage in dict.fromkeys(use.stage for trial in report.trials for use in trial.stages):
        cells = [stage]
        for trial in report.trials[1:]:
            use = next((use for use in trial.stages if use.stage == stage), None)
            mark = "← " if use is not None and use == trial.bottleneck else ""
            cells += [_ms(use.seconds_per_step), f"{mark}{use.busy_share:.0%}"] if use else ["", ""]
        rows.append(tuple(cells))
    return rows


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:,.3f}"
