"""Tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`rows` under `header`, first column to the left, the others to the right; without a header if all are empty."""
    from rich import box
    from rich.console import Console as Terminal
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if any(header) else None, show_header=any(header), pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # as wide as it is, also if output goes to a pipe: a shortened number would be another number
    terminal = Terminal(width=200, markup=False, emoji=False)
    with terminal.capture() as drawn:
        terminal.print(table)
    sys.stdout.write(drawn.get())  # by itself it would exit with 1 if nobody reads


def cell_text(value: object) -> str:
    """A value as a table shows it: numbers with five digits, or whole with thousands separated."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
