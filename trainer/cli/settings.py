"""A configuration's settings as options: `--section.key value`, over those of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

from pipeline.device import DataConfig
from trainer.cli.arguments import NOTHING, UsageError
from trainer.config import Config, nearest, setting_types
from trainer.earlier_keys import CONSTANTS, MOVED, check_constant


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether help is to be printed, whatever else is given."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def settings_for_help() -> Config:
    """Every setting's default, as help shows it: what a preset decides with the preset's value."""
    config = Config(data=DataConfig(path="DATA")).resolved()
    return replace(config, data=replace(config.data, path=tyro.MISSING))


def current_arguments(arguments: Sequence[str], verb: str) -> list[str]:
    """`arguments` with options of earlier versions under their present names; every `--section.key` is known then.

    Raises: UsageError for one that is not, or a constant with another value.
    """
    known = setting_types(Config)
    current: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        found = re.fullmatch(r"--([\w-]+(?:\.[\w-]+)+)(=.*)?", argument, re.DOTALL)
        if found is None:
            current.append(argument)
            continue
        key, value = found[1].replace("-", "_"), found[2] or ""
        if key in CONSTANTS:
            text = value[1:] if value else waiting.pop(0) if waiting else ""
            try:
                check_constant(key, _number(text))
            except ValueError as error:
                raise UsageError(f"--{error}; see alphastream {verb} --help") from None
        elif MOVED.get(key, key) in known:
            current.append(f"--{MOVED.get(key, key)}{value}")
        elif key.startswith(("optimizer.options.", "model.options.")):
            raise UsageError(f"--{key} is not an option; write {key} = ... into the file")
        else:
            remedy = re.sub(r"'([\w.]+)'", r"--\1", nearest(key))
            raise UsageError(f"--{key} is not an option; {remedy}; see alphastream {verb} --help")
    return current


def _number(text: str) -> Any:
    """A constant as it was given; a text that is not a number stands for itself."""
    if text == NOTHING:
        return None
    try:
        return float(text)
    except ValueError:
        return text
