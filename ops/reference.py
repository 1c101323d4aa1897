"""The table of metrics in ops/README.md, made from their definitions: `python -m ops.reference` rewrites it."""

from __future__ import annotations

from pathlib import Path

from ops.series import PREFIX, SERIES, Series

PATH = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- metrics: begin (python -m ops.reference) -->", "<!-- metrics: end -->"


def metric_table() -> str:
    """Every series as a Markdown table, in the order of their definition."""
    lines = ["| series | type | meaning |", "|---|---|---|"]
    lines += [f"| `{PREFIX}_{series.name}{_label(series)}` | {series.kind} | {_meaning(series)} |" for series in SERIES]
    return "\n".join(lines)


def updated(document: str) -> str:
    """`document` with the table between its two markers made anew."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{metric_table()}\n{END}{after}"


def _label(series: Series) -> str:
    return f"{{{series.label}}}" if series.label else ""


def _meaning(series: Series) -> str:
    extra = ""
    if series.values:
        extra = f" `{series.label}`: {', '.join(f'`{value}`' for value in series.values)}."
    if series.buckets:
        extra = f" Buckets: {', '.join(f'{bound:g}' for bound in series.buckets)}."
    return series.help + extra


if __name__ == "__main__":
    PATH.write_text(updated(PATH.read_text(encoding="utf-8")), encoding="utf-8")
