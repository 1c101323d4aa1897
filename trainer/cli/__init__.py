"""The command line: `alphastream VERB`."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """As `entry.run_command`; as a program, without `argv`, it hears signals before anything heavy is imported."""
    if argv is not None:
        return _main(argv)
    from trainer.cli.streams import occupy
    from trainer.process import as_program

    occupy()
    # what it says is looked at, and maybe refused, where ranks begin; that imports more
    ranks = os.environ.get("WORLD_SIZE", "").strip()
    return as_program(lambda: _main(None), one_of_several=ranks not in ("", "1"))


def _main(argv: Sequence[str] | None) -> int:
    from trainer.cli.entry import run_command

    return run_command(argv)


__all__ = ["main"]
