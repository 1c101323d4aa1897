"""The documented metrics are the defined ones."""

from __future__ import annotations

from ops import reference
from ops.series import SERIES


def test_the_guide_holds_the_table_made_from_the_definitions() -> None:
    document = reference.PATH.read_text(encoding="utf-8")
    assert reference.updated(document) == document, "run python -m ops.reference"
    for series in SERIES:
        assert f"`alphastream_{series.name}" in document


def test_only_what_lies_between_the_markers_changes() -> None:
    document = f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n"
    updated = reference.updated(document)
    assert updated.startswith(f"before\n{reference.BEGIN}\n| series |")
    assert updated.endswith(f"|\n{reference.END}\nafter\n")
    assert reference.updated(updated) == updated
