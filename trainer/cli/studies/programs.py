"""Studies that are programs and not files of runs: `alphastream study NAME ...`, each with options of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trainer.cli.arguments import parse_arguments
from trainer.cli.tables import cell_text, print_table
from trainer.console import Console
from trainer.study import CostConfig


@dataclass(frozen=True, kw_only=True)
class CostArguments:
    """Measure what α* costs on this machine, each way to it beside a plain training step: one JVP, a secant, curvlinops
    with and without its self-check, and the published study's own way.

    curvlinops and the published way need the extra `curvlinops`; without it they are left out, which is said.

    Example: alphastream study cost --out COST
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the page (index.html) and the table (cost.csv)."""
    settings: Annotated[CostConfig, tyro.conf.arg(name="")]


def _cost(arguments: list[str]) -> int:
    default = CostArguments(out=tyro.MISSING, settings=CostConfig())
    given = parse_arguments(CostArguments, arguments, "study cost", default=default)
    from trainer.study import cost_study

    console = Console()
    table = cost_study(given.settings, given.out, said=console.say)
    header = ("", "seconds", "× plain", "lowest", "highest", "published s", "published ×")
    print_table(header, [[cell_text(value) for value in row] for row in table.rows])
    console.say(f"report {(given.out / 'index.html').resolve().as_uri()}")
    return 0


@dataclass(frozen=True, kw_only=True)
class SanityArguments:
    """Check α* where the right answer is known: a linear model of one parameter, squared error, one sample, SGD.

    α* times the step must land on the optimum, the target and zero loss, each within 1e-6, for every sample and rate,
    by one JVP and by the secant. Exit code 0 if all do, 1 if one does not.

    Example: alphastream study sanity
    """


def _sanity(arguments: list[str]) -> int:
    parse_arguments(SanityArguments, arguments, "study sanity")
    from trainer.study import landings

    found = list(landings())
    header = ("method", "x", "rate", "α*", "lands at", "optimum", "prediction", "target", "loss", "")
    rows = [
        (
            each.method,
            *map(cell_text, (each.x, each.rate, each.relative, each.weight, each.optimum)),
            *map(cell_text, (each.prediction, each.target, each.loss)),
            "ok" if each.lands else "MISSES",
        )
        for each in found
    ]
    print_table(header, rows)
    missed = sum(not each.lands for each in found)
    print(f"{missed} of {len(found)} miss" if missed else f"all {len(found)} land within 1e-6")
    return 1 if missed else 0


def _rates(arguments: list[str]) -> int:
    from trainer.study import rates_study

    return rates_study(arguments)


PROGRAMS: dict[str, Callable[[list[str]], int]] = {"cost": _cost, "rates": _rates, "sanity": _sanity}
"""By name; each takes the arguments after it and returns the exit code, importing what it works with when it begins."""
