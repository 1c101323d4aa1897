"""The command that each rank runs: the one that was given, without what is the launcher's."""

from __future__ import annotations

import sys
from collections.abc import Sequence

OF_LAUNCHER = ("--ranks", "--max-restarts", "--grace-seconds")
"""Options with one value each; underscores do for hyphens."""


def without_options(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """`arguments` without these options and their values, given as two arguments or as one with `=`."""
    left, waiting = list[str](), list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, _ = argument.partition("=")
        if name.replace("_", "-") not in names:
            left.append(argument)
        elif not equals and waiting:
            waiting.pop(0)
    return left


def same_program(module: str, *, arguments: Sequence[str]) -> list[str]:
    """The command that runs this process's program with other arguments: the same interpreter, options and file.

    Where the process's own are not those of a command line, as within another program, `python -m module` is meant.
    """
    given = sys.argv[1:]
    original = sys.orig_argv[1 : len(sys.orig_argv) - len(given)]
    known = original and sys.orig_argv[len(original) + 1 :] == given and given[:1] == list(arguments[:1])
    return [sys.executable, *(original if known else ["-m", module]), *arguments]
