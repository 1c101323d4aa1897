"""`alphastream study`: the studies of a file, and those that are programs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro

from trainer.cli.arguments import UsageError, parse_arguments, parse_first
from trainer.cli.settings import asks_for_help, current_arguments, settings_for_help
from trainer.cli.studies.programs import PROGRAMS
from trainer.config import MISSING_PATH, Config, ConfigError
from trainer.console import Console
from trainer.study import StudyFile, read_study, scale_of


@dataclass(frozen=True, kw_only=True)
class StudyFileArguments:
    """The arguments of a study that come before the settings."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")]
    """TOML file of the study: a configuration's sections as the base of every run, and [study]. Or the name of one
    that comes with the package, such as learning-rate-free."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for runs and results: created, or continued where it stopped."""
    jobs: int = 1
    """Runs at a time, each in a process with its share of the cores. Budgets in seconds can be compared only at the
    same number; the last bits of a loss may differ between numbers."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """Make only the runs of these arms."""
    scale: str | None = None
    """Make the study smaller by this factor, such as 1/100, where its file says how (thesis-observe and thesis-apply):
    steps, intervals, batches and table together. The page and the console say what became what."""


@dataclass(frozen=True, kw_only=True)
class StudyArguments(StudyFileArguments):
    """Make all runs of a study, continuing DIR where it stopped, and report them.

    Every --section.key below overrides the file's base of all runs; what an arm sets is changed in the file. Defaults
    are those of preset dlrm-tiny; None stands for no value.

    Some studies are programs, with options of their own (alphastream study cost --help): cost measures what α* costs
    on this machine, sanity checks α* where the right answer is known, rates tries learning-rate rules on small tasks.

    Example: alphastream study learning-rate-free --out STUDY --data.path DATA
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def study_verb(arguments: list[str]) -> int:
    """`alphastream study CONFIG.toml --out DIR [--section.key value]`, or `alphastream study PROGRAM ...`."""
    if arguments and arguments[0] in PROGRAMS:
        return PROGRAMS[arguments[0]](arguments[1:])
    if asks_for_help(arguments):
        default = StudyArguments(config=tyro.MISSING, out=tyro.MISSING, settings=settings_for_help())
        parse_arguments(StudyArguments, arguments, "study", default=default, underscores=True)
    arguments = current_arguments(arguments, "study")
    known = parse_first(StudyFileArguments, arguments, "study")
    if str(known.config) in PROGRAMS:
        raise UsageError(f"study {known.config} has options of its own; write alphastream study {known.config} first")
    file = read_study(known.config)

    def settings_over(base: Config) -> StudyArguments:
        """The arguments, whose settings are those of `base` where none is given."""
        default = StudyArguments(config=known.config, out=known.out, settings=base)
        return parse_arguments(StudyArguments, arguments, "study", default=default, underscores=True)

    given = settings_over(file.base)
    if given.scale is not None:
        file = _scaled(file, scale_of(given.scale), given.settings.data.path)
        given = settings_over(file.base)
    from trainer.study import run_study, write_study_report

    console = Console()
    if file.settings.scaled:
        console.say(f"scaled by {file.settings.scaled_by}:")
        for line in dict.fromkeys(f"  {each.key} {each.was} → {each.now}" for each in file.settings.scaled):
            console.say(line)
    end = run_study(file.unfold(given.settings), given.out, jobs=given.jobs, arms=given.arms, console=console)
    page = write_study_report(given.out)
    console.say(f"{end}; report {page.resolve().as_uri()}")
    return end.exit_code


def _scaled(file: StudyFile, scale: Fraction, path: str) -> StudyFile:
    """The study at `scale`, of the rows in the folder at `path`."""
    if file.settings.scale is not None and not path:
        raise ConfigError(f"{file.path}: {MISSING_PATH}")
    from pipeline.shards import Manifest

    rows = Manifest.load(path).splits["train"].rows if file.settings.scale is not None else 0
    return file.scaled(scale, train_rows=rows)
