"""Formats by name, and from a small TOML file that describes another delimited log."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, cause_of
from pipeline.schema import CRITEO, LogFormat, describe_format

CRITEO_KAGGLE = replace(CRITEO, name="criteo-kaggle", bucket_sizes=(1_000_000,) * len(CRITEO.sparse))
"""The Criteo Display Advertising Challenge's log: the shape of `criteo`, whose bucket sizes were counted on the 1TB
log, where other columns hold the many values."""

_AVAZU_SPARSE = (
    "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model", "device_type", "device_conn_type", "C14", "C15", "C16", "C17", "C18",
    "C19", "C20", "C21",
)  # fmt: skip
AVAZU = LogFormat(
    name="avazu",
    columns=("id", "click", *_AVAZU_SPARSE),
    label="click",
    dense=(),
    sparse=_AVAZU_SPARSE,
    bucket_sizes=(1_000_000,) * len(_AVAZU_SPARSE),
    delimiter=",",
    header=True,
    hexadecimal=False,
    missing=(),
)
"""The Avazu challenge's log: comma separated, with a header, all categories."""

FORMATS = {log_format.name: log_format for log_format in (CRITEO, CRITEO_KAGGLE, AVAZU)}
"""Built-in formats by name."""


def find_format(name: str) -> LogFormat:
    """The built-in format of that name, or the one that the TOML file of that name describes."""
    return FORMATS[name] if name in FORMATS else load_format(name)


def load_format(path: str | Path) -> LogFormat:
    """The format in a TOML file, whose keys are LogFormat's fields (`name` is the file's unless given).

    `bucket_sizes` may be one number for all sparse columns. A byte order mark is skipped.
    Raises: InputError for an unreadable file or an unknown, missing or impossible value.
    """
    path = Path(path)
    try:
        values: dict[str, Any] = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        near = get_close_matches(str(path), FORMATS, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"format {path} does not exist; {meant}give {', '.join(FORMATS)} or the path of a TOML file"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"format {path} is not UTF-8 text ({cause_of(error)}); convert it") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"format {path} is not TOML: {cause_of(error)}; correct it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"format {path} cannot be read ({cause_of(error)}); check the path") from None
    values.setdefault("name", path.stem)
    values.setdefault("dense", [])
    values.setdefault("sparse", [])
    size, sparse = values.get("bucket_sizes", [] if not values["sparse"] else None), values["sparse"]
    if type(size) is int and isinstance(sparse, list):
        values["bucket_sizes"] = [size] * len(sparse)
    elif size == []:
        values["bucket_sizes"] = []
    return _in_file(path, values)


def _in_file(path: Path, values: dict[str, Any]) -> LogFormat:
    try:
        return describe_format(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def with_bucket_sizes(log_format: LogFormat, text: str) -> LogFormat:
    """The format with other bucket sizes: one number for every sparse column, one each (`10,20,30`), or those of some
    columns by name (`C3=10,C7=20`).

    Raises: InputError for a text that is none of these, or a size out of range.
    """
    entries = [entry.strip() for entry in text.split(",")]
    sizes = dict(zip(log_format.sparse, log_format.bucket_sizes, strict=True))
    if all("=" in entry for entry in entries):
        for entry in entries:
            name, _, number = entry.rpartition("=")
            if name not in sizes:
                near = get_close_matches(name, sizes, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sizes)}"
                raise InputError(f"--bucket-sizes: {name!r} is not a sparse column of {log_format.name}; {meant}")
            sizes[name] = _whole(number, text)
        chosen = tuple(sizes.values())
    elif len(entries) == 1:
        chosen = (_whole(entries[0], text),) * len(sizes)
    else:
        chosen = tuple(_whole(entry, text) for entry in entries)
    try:
        return replace(log_format, bucket_sizes=chosen)
    except InputError as error:
        raise InputError(f"--bucket-sizes {text}: {error}") from None


def _whole(number: str, text: str) -> int:
    if not number.isascii() or not number.replace("_", "").isdigit() or len(number) > 32:
        raise InputError(
            f"--bucket-sizes {text!r}: {number!r} is not a whole number; give one for every column (1000000), one each "
            "(10,20,30) or some by name (C3=10,C7=20)"
        )
    return int(number.replace("_", ""))
