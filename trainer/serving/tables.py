"""What a run recorded, as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from trainer.records import RunHistory, read_records

if TYPE_CHECKING:
    DataFrame = Any  # of pandas, which need not be there

_COUNTS = ("step", "last_step", "steps", "epoch", "rows", "estimates")


class RunTables:
    """The records of a run directory, read when they are first asked for; `frame` gives each as a DataFrame.

    A run in progress gives what is written so far. Numbers that a line has not are null.
    """

    def __init__(self, run: str | Path) -> None:
        self._run = Path(run)

    @cached_property
    def _history(self) -> RunHistory:
        return RunHistory.load(self._run)

    @property
    def steps(self) -> pa.Table:
        """A row a step (or several, of a long run; see `RunHistory.steps`), ascending: loss, learning rate, seconds."""
        return _table(self._history.steps)

    @property
    def alpha(self) -> pa.Table:
        """A row an estimate of α*, ascending in `step`; see `RunHistory.alpha`."""
        return _table({name: values for name, values in self._history.alpha.items() if values.ndim == 1})

    @property
    def evaluations(self) -> pa.Table:
        """A row an evaluation of a split (`split`), split after split."""
        splits = self._history.evaluations
        tables = [
            _table(columns).add_column(0, "split", pa.array([split] * len(columns["step"]), pa.string()))
            for split, columns in splits.items()
        ]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"split": pa.array([])})

    @property
    def events(self) -> pa.Table:
        """A row an event: `time` (Unix seconds), `event`, and what it tells of; lists and mixed values as JSON."""
        records = list(read_records(self._run / "events.jsonl", damaged=lambda line: None))
        names = dict.fromkeys(("time", "event", *(name for record in records for name in record)))
        return pa.table({name: _values(record.get(name) for record in records) for name in names})

    def frame(self, name: Literal["steps", "alpha", "evaluations", "events"]) -> DataFrame:
        """One of the tables as a DataFrame of pandas, where what is null is missing.

        Raises: InputError if there is no such table, or pandas is not installed.
        """
        names = ("steps", "alpha", "evaluations", "events")
        if name not in names:
            raise InputError(f"there are no records {name!r}; give one of {', '.join(names)}")
        try:
            import pandas  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            if error.name != "pandas":
                raise
            raise InputError(
                f"records as a DataFrame need pandas; pip install 'alphastream[pandas]', or use records.{name}, an "
                "Arrow table"
            ) from None
        return getattr(self, name).to_pandas()


def _table(columns: Mapping[str, Any]) -> pa.Table:
    found = {}
    for name, values in columns.items():
        array = pa.array(values, from_pandas=True)
        whole = name in _COUNTS and bool(np.all(~np.isfinite(values) | (values == np.floor(values))))
        found[name] = array.cast(pa.int64()) if whole else array
    return pa.table(found)


def _values(values: Iterable[Any]) -> pa.Array:
    held = list(values)
    if any(isinstance(value, (list, dict)) for value in held):
        return pa.array([None if value is None else json.dumps(value) for value in held], pa.string())
    try:
        return pa.array(held)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in held], pa.string())
