"""What a log line and a shard hold: columns, dtypes, bucket sizes, format version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.errors import InputError

FORMAT_VERSION = 2
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
    (int32 bucket = Fingerprint64(field ‖ decimal j) mod bucket_sizes[j], j the position in `sparse`).
    """

    name: str
    columns: tuple[str, ...]
    """Every field of a line, in order; names in neither `label`, `dense` nor `sparse` are ignored."""
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

    def __post_init__(self) -> None:
        used = (self.label, *self.dense, *self.sparse)
        unknown = [name for name in used if name not in self.columns]
        if unknown:
            raise InputError(f"format {self.name!r}: {unknown[0]!r} is not among its columns; add it to `columns`")
        if len(set(used)) != len(used) or len(set(self.columns)) != len(self.columns):
            raise InputError(f"format {self.name!r}: a column is named twice; name each column once")
        if len(self.bucket_sizes) != len(self.sparse):
            raise InputError(
                f"format {self.name!r}: {len(self.bucket_sizes)} bucket sizes for {len(self.sparse)} sparse columns; "
                "give one each"
            )
        if any(not 0 < size < 2**31 for size in self.bucket_sizes):
            raise InputError(f"format {self.name!r}: bucket sizes must lie between 1 and 2³¹ − 1")
        if len(self.delimiter.encode()) != 1 or self.delimiter in "\r\n":
            raise InputError(f"format {self.name!r}: the delimiter must be one byte and no line end")

    def to_dict(self) -> dict[str, Any]:
        """The description as plain JSON values; `from_dict` gives it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogFormat:
        """The format that `to_dict` described.

        Raises: InputError for a missing or unknown key.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"format: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            return cls(**arguments)
        except TypeError as error:
            raise InputError(f"format: {error}; give every required key") from None


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
