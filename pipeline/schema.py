"""What a log line and a shard hold: columns, dtypes, bucket sizes, format version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from pipeline.errors import InputError

FORMAT_VERSION = 2
APPENDED_FORMAT_VERSION = 3
"""Of a data folder with more than one generation."""
ROW_GROUP_ROWS = 65_536
SPLITS = ("train", "validation", "test")
Compression = Literal["lz4", "zstd", "none"]

CRITEO_BUCKET_SIZES = (
    39_884_406, 39_043, 17_289, 7_420, 20_263, 3, 7_120, 1_543, 63, 38_532_951, 2_953_546, 403_346, 10, 2_208,
    11_938, 155, 4, 976, 14, 39_979_771, 25_641_295, 39_664_984, 585_935, 12_972, 108, 36,
)  # fmt: skip
"""AlgoPerf's vocabulary sizes of C1..C26 of the Criteo 1TB log."""


@dataclass(frozen=True, kw_only=True)
class LogFormat:
    """How one delimited log is read and encoded. A pure description: no paths, no options of a run.

    A row becomes `label` (uint8), `dense` (int32, null = missing) and `sparse`
    (int32 bucket = Fingerprint64(field ‖ decimal j) mod bucket_sizes[j], j the position in `sparse`), and, where the
    format has one, `weight` (float32).
    """

    name: str
    columns: tuple[str, ...]
    """Every field of a line, in order; names in neither `label`, `dense`, `sparse` nor `weight` are ignored."""
    label: str
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    bucket_sizes: tuple[int, ...]
    """Buckets of each sparse column, before any reduction to table rows."""
    delimiter: str = "\t"
    header: bool = False
    """Whether the first line of every file names the columns."""
    hexadecimal: bool = True
    """Whether a category that is not all hexadecimal digits makes its line a reject."""
    missing: tuple[str, ...] = ("-1",)
    """Literals that mean missing, beside the empty field."""
    default_category: str = "00000000"
    """What a missing category is hashed as."""
    weight: str = ""
    """The column that says how often a row counts, a number above 0; empty: every row counts once."""

    def __post_init__(self) -> None:
        for complaint in _complaints_of_columns(self):
            raise InputError(f"format {self.name!r}: {complaint}")

    def without_label(self, *, without_weight: bool = False) -> LogFormat:
        """The same format for lines that lack the label column, perhaps the weight's too: both are empty, as nothing
        is weighed without a label."""
        left_out = {self.label, self.weight} if without_weight else {self.label}
        columns = tuple(name for name in self.columns if name not in left_out)
        return replace(self, label="", weight="", columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """The description as plain JSON values, without a weight that is not there; `from_dict` gives it back."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not self.weight:
            del values["weight"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogFormat:
        """The format that `to_dict` described.

        Raises: InputError for a missing or unknown key. Types are those that were stored: see describe_format for what
        a person wrote.
        """
        known = {field.name: field for field in fields(cls)}
        if unknown := [str(key) for key in values if key not in known]:
            raise InputError(f"format: unknown key {unknown[0]!r}; {_nearest(unknown[0], known)}")
        required = [name for name, field in known.items() if field.default is MISSING]
        if missing := [name for name in required if name not in values]:
            raise InputError(f"format: `{missing[0]}` is missing; give {', '.join(required)}")
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)


def describe_format(values: Mapping[str, Any]) -> LogFormat:
    """The format that a person describes by LogFormat's fields, tuples as lists.

    Raises: InputError that names the first key that is missing or unknown, or whose value has the wrong type or cannot
    be meant.
    """
    name = values.get("name")
    where = f"format {name!r}" if isinstance(name, str) else "format"
    for key in ("name", "label", "delimiter", "default_category", "weight"):
        _demand(values, where, key, "a string", isinstance(values.get(key), str))
    for key in ("columns", "dense", "sparse", "missing"):
        _demand(values, where, key, "a list of strings", _all_of(values.get(key), str))
    for key in ("header", "hexadecimal"):
        _demand(values, where, key, "true or false", isinstance(values.get(key), bool))
    sizes = values.get("bucket_sizes")
    _demand(values, where, "bucket_sizes", "a whole number, or a list of them", _all_of(sizes, int))
    log_format = LogFormat.from_dict(values)
    for complaint in _complaints_of_text(log_format):
        raise InputError(f"{where}: {complaint}")
    return log_format


def _all_of(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and type(value) is not bool for value in values)


def _demand(values: Mapping[str, Any], where: str, key: str, wanted: str, holds: bool) -> None:
    """Raises: InputError for a key that is there and does not hold what is wanted."""
    if key in values and not holds:
        raise InputError(f"{where}: `{key}` must be {wanted}, and {_shown(values[key])} was given")


def _shown(value: object) -> str:
    """A value as TOML and JSON write it, shortened."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


_ONE = re.compile(r"\s*\+?0*1(\.0*)?(e[+-]?0+)?\s*", re.ASCII | re.IGNORECASE)
"""The plain spellings of 1."""


def _complaints_of_text(log_format: LogFormat) -> Iterator[str]:
    """What is wrong with names, delimiter and literals, and was nevertheless accepted once."""
    strings = (log_format.name, log_format.delimiter, log_format.default_category)
    for text in (*strings, *log_format.columns, *log_format.missing):
        if any("\ud800" <= character <= "\udfff" for character in text):
            yield f"{text!r} is not valid Unicode; correct it"
    delimiter = log_format.delimiter
    if not log_format.name:
        yield "`name` is empty; give it a name"
    if not log_format.label:
        yield "`label` is empty; name the column of the labels"
    if delimiter.isalnum() or delimiter in "+-.":
        yield f"the delimiter {delimiter!r} may be part of a number or a category; give another"
    for column in log_format.columns:
        if not column or any(character in column for character in (delimiter, "\r", "\n")):
            yield f"column {_shown(column)} of `columns` is empty, or has a delimiter or a line end in it; correct it"
    for literal in log_format.missing:
        if any(character in literal for character in (delimiter, "\r", "\n")):
            yield f"{_shown(literal)} in `missing` has a delimiter or a line end in it, and no field has; correct it"
    for literal in log_format.missing:
        if _ONE.fullmatch(literal):
            yield f"{_shown(literal)} in `missing` would turn every label that is written so into 0; take it out"
    if not log_format.dense and not log_format.sparse:
        yield "neither `dense` nor `sparse` names a column; name those to learn from"


def _complaints_of_columns(log_format: LogFormat) -> Iterator[str]:
    """What is wrong with which columns there are and how many buckets they have."""
    used = (*filter(None, [log_format.label, log_format.weight]), *log_format.dense, *log_format.sparse)
    for name in used:
        if name not in log_format.columns:
            near = get_close_matches(name, log_format.columns, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "add it to `columns`"
            yield f"{_shown(name)} is not among its columns; {remedy}"
    if log_format.weight and log_format.weight == log_format.label:
        yield f"column {log_format.weight!r} is named twice, as `label` and as `weight`; name each column once"
    for key in ("columns", "dense", "sparse"):
        names = getattr(log_format, key)
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            yield f"column {twice!r} is named twice in `{key}`; name each column once"
    for first, second in (
        ("dense", "sparse"),
        *((one, other) for one in ("label", "weight") for other in ("dense", "sparse")),
    ):
        names = (getattr(log_format, first),) if first in ("label", "weight") else getattr(log_format, first)
        if both := [name for name in names if name in getattr(log_format, second)]:
            yield f"column {both[0]!r} is named twice, in `{first}` and in `{second}`; name each column once"
    sizes = log_format.bucket_sizes
    if len(sizes) != len(log_format.sparse):
        yield f"{len(sizes)} bucket sizes for {len(log_format.sparse)} sparse columns; give one each, or one number"
    for size in sizes:
        if not 0 < size < 2**31:
            yield f"bucket sizes must lie between 1 and 2³¹ − 1, and {_shown(size)} was given"
    delimiter = log_format.delimiter
    if len(delimiter.encode("utf-8", "replace")) != 1 or delimiter in "\r\n":
        yield f"the delimiter must be one byte and no line end, and {_shown(delimiter)} was given"


DENSE_COLUMNS = tuple(f"I{i}" for i in range(1, 14))
SPARSE_COLUMNS = tuple(f"C{i}" for i in range(1, 27))

CRITEO = LogFormat(
    name="criteo",
    columns=("label", *DENSE_COLUMNS, *SPARSE_COLUMNS),
    label="label",
    dense=DENSE_COLUMNS,
    sparse=SPARSE_COLUMNS,
    bucket_sizes=CRITEO_BUCKET_SIZES,
)
"""The Criteo 1TB click logs as AlgoPerf encodes them (the Kaggle log has the same shape)."""
