"""Formats by name, and from a small TOML file that describes another delimited log."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pipeline.errors import InputError
from pipeline.schema import CRITEO, LogFormat


def find_format(name: str) -> LogFormat:
    """The built-in format of that name, or the one that the TOML file of that name describes."""
    return CRITEO if name == CRITEO.name else load_format(name)


def load_format(path: str | Path) -> LogFormat:
    """The format in a TOML file, whose keys are LogFormat's fields (`name` is the file's unless given).

    `bucket_sizes` may be one number for all sparse columns.
    Raises: InputError for an unreadable file or an unknown, missing or impossible value.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"format {path} does not exist; give `criteo` or the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"format {path} cannot be read ({error}); check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"format {path} is no TOML: {error}; correct it") from None
    values.setdefault("name", path.stem)
    values.setdefault("dense", [])
    values.setdefault("sparse", [])
    if isinstance(values.get("bucket_sizes"), int):
        values["bucket_sizes"] = [values["bucket_sizes"]] * len(values["sparse"])
    try:
        return LogFormat.from_dict(values)
    except (TypeError, AttributeError) as error:
        raise InputError(f"format {path}: a value has the wrong type ({error}); correct it") from None
