"""Studies that are programs and not files of runs: `alphastream study NAME ...`, each with options of its own."""

from __future__ import annotations

from collections.abc import Callable


def _rates(arguments: list[str]) -> int:
    from trainer.study import rates_study

    return rates_study(arguments)


PROGRAMS: dict[str, Callable[[list[str]], int]] = {"rates": _rates}
"""By name; each takes the arguments after it and returns the exit code, importing what it works with when it begins."""
