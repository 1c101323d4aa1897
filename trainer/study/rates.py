"""`alphastream study rates`: the suite of `stepsize`, which runs without the trainer, too."""

from __future__ import annotations

from collections.abc import Sequence

from stepsize.suite import suite_command


def rates_study(arguments: Sequence[str]) -> int:
    """Run the suite with the command's arguments after `rates`; returns the exit code."""
    return suite_command(arguments, program="alphastream study rates")
