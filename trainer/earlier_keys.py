"""Configuration keys of earlier versions: some have moved, some became constants; old files keep working."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    f"stepsize.{name}": f"stepsize.measuring.{name}"
    for name in ("estimators", "method", "precision", "curvature", "diagnostics", "per_group", "probe_fraction")
}
"""Where a key was → where it is."""

CONSTANTS: dict[str, Any] = {
    "stepsize.drift": 0.02,
    "stepsize.clip": 1.25,
    "stepsize.pooling": 100,
    "stepsize.min_rate": 1e-8,
    "stepsize.max_rate": 1.0,
    "stepsize.max_age": None,
    "eval.batch_rows": 8192,
}
"""What can no longer be set → its value; earlier versions wrote it into every RUN/config.toml."""


def renewed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables of an earlier version as those of this one; what is not of an earlier version stays as it is.

    Raises: ValueError for a constant with another value, and for a key that is there under both its names.
    """
    result = {section: dict(table) if isinstance(table, Mapping) else table for section, table in values.items()}
    for key in (*MOVED, *CONSTANTS):
        section, name = key.split(".")
        table = result.get(section)
        if not isinstance(table, dict) or name not in table:
            continue
        value = table.pop(name)
        if key in CONSTANTS:
            check_constant(key, value)
            continue
        inner = MOVED[key].split(".")[1]
        moved = table.get(inner, {})
        if not isinstance(moved, Mapping):
            continue  # refused where sections are checked
        if name in moved:
            raise ValueError(f"{key!r} is now {MOVED[key]!r}, and both are there; leave the first out")
        table[inner] = {**moved, name: value}
    return result


def renewed_choices(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The same for dotted keys with one value or a list of values to be tried.

    Raises: ValueError for a constant with another value.
    """
    result = {}
    for key, value in choices.items():
        if key not in CONSTANTS:
            result[MOVED.get(key, key)] = value
            continue
        for each in value if isinstance(value, list) else [value]:
            check_constant(key, each)
    return result


def check_constant(key: str, value: Any) -> None:
    """Raises: ValueError if `value` is not the one that `key` always has."""
    constant = CONSTANTS[key]
    if isinstance(value, bool) or value != constant:
        always = "off" if constant is None else repr(constant)
        raise ValueError(f"{key} = {value!r} can no longer be set, it is always {always}; leave it out")
