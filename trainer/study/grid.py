"""Dotted keys of a configuration, each with one value or several, and all the combinations of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import msgspec

from trainer.config import Config, setting_types

Settings = list[tuple[str, list[Any]]]
"""Dotted keys, each with its values."""


def settings_of(table: Mapping[str, Any]) -> Settings:
    """Every dotted key of `table`, nested or written with dots, with its values.

    A list is several values. A key whose one value is a list takes a list of lists to have several.
    """
    kinds = setting_types(Config)
    return [(key, _choices(value, kinds.get(key))) for key, value in leaves(table)]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested tables with its value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _choices(value: Any, kind: Any) -> list[Any]:
    is_list_itself = any(get_origin(part) is tuple for part in (kind, *get_args(kind)))
    if not isinstance(value, list) or (is_list_itself and not all(isinstance(item, list) for item in value)):
        return [value]
    return value


def combinations(settings: Settings) -> Iterator[dict[str, Any]]:
    """One value for every key, in every combination; the last key changes fastest."""
    for values in itertools.product(*(choices for _, choices in settings)):
        yield dict(zip((key for key, _ in settings), values, strict=True))


def assign(nested: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value under a dotted key."""
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(nested.get(parent), dict):
            nested[parent] = {}
        nested = nested[parent]
    nested[name] = value


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of every key, or all of it if two keys end alike."""
    unique = list(dict.fromkeys(keys))
    ends = [key.rsplit(".", 1)[-1] for key in unique]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(unique, ends, strict=True)}


def cell_name(values: Mapping[str, Any]) -> str:
    """`lr=0.001,average=ema`, of characters that any file system takes."""
    return ",".join(f"{name}={re.sub(r'[^A-Za-z0-9_.+-]+', '-', value_text(value))}" for name, value in values.items())


def value_of(config: Config, key: str) -> Any:
    """A run's value of a dotted key, what the preset fills in included; None if the key has none.

    Raises: ValueError for sizes that do not fit one another.
    """
    sizes = config.model.resolved()
    sections = {"model": sizes, "optimizer": config.optimizer.resolved(sizes.preset)}
    section, *names = key.split(".")
    value = msgspec.to_builtins(sections.get(section, getattr(config, section)))
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return tuple(value) if isinstance(value, list) else value


def value_text(value: Any) -> str:
    """A value as names and tables show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "x".join(map(value_text, value))
    return "" if value is None else str(value)
