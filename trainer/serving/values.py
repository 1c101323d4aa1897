"""What a run's weights say of raw fields or tensors that are in memory."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.device import open_lines
from pipeline.errors import InputError, cause_of
from pipeline.schema import LogFormat
from pipeline.source import find_sources
from trainer.job import EVALUATION_BATCH_ROWS, Learner


@torch.no_grad()
def predict_values(
    learner: Learner,
    log_format: LogFormat,
    values: Any,
    *,
    labelled: bool | None = None,
) -> NDArray[np.float32]:
    """See `OpenedRun.predict`."""
    with learner.answering() as model:
        if isinstance(values, tuple):
            return _of_tensors(model, learner, log_format, values)
        if isinstance(values, str | bytes) or (not hasattr(values, "__iter__") and not _has_columns(values)):
            raise InputError(f"one {type(values).__name__} was given; give a list of lines, a table or (dense, ids)")
        table = _as_table(values)
        if table is None:
            return _of_lines(model, learner, log_format, list(values), labelled=labelled)
        return _of_lines(model, learner, log_format, _lines_of(table, log_format), labelled=False)


def _of_tensors(
    model: nn.Module, learner: Learner, log_format: LogFormat, inputs: tuple[Tensor, ...]
) -> NDArray[np.float32]:
    if len(inputs) != 2 or not all(isinstance(part, Tensor) for part in inputs):
        raise InputError("a tuple was given; give a pair of tensors (dense, ids), or a list of lines")
    dense, ids = inputs
    features = len(log_format.dense)
    if dense.ndim != 2 or ids.ndim != 2 or ids.shape[1] != len(dense) or dense.shape[1] != features:
        raise InputError(
            f"dense {tuple(dense.shape)} and ids {tuple(ids.shape)} do not fit; give dense (R, {features}) and "
            f"ids ({len(log_format.sparse)}, R)"
        )
    if not dense.is_floating_point() or ids.dtype not in (torch.int32, torch.int64):
        raise InputError(
            f"dense is {dense.dtype} and ids are {ids.dtype}; give them as `pipeline.open_split` does: logarithms in "
            "float32, table rows in int32"
        )
    dense = dense.float()
    _refuse_outside(ids, learner.tables)
    found = np.empty(len(dense), np.float32)
    for start in range(0, len(dense), EVALUATION_BATCH_ROWS):
        rows = slice(start, start + EVALUATION_BATCH_ROWS)
        logits = model(dense[rows].to(learner.device), ids[:, rows].to(learner.device))
        found[rows] = logits.float().sigmoid().cpu().numpy()
    return found


def _refuse_outside(ids: Tensor, tables: int | tuple[int, ...]) -> None:
    """Raises: InputError for ids (S, R) that are no rows of the table, or of their own feature's."""
    rows = (tables,) * len(ids) if isinstance(tables, int) else tables
    if len(rows) != len(ids):
        raise InputError(f"ids {tuple(ids.shape)}: the model has {len(rows)} sparse features; give ids (S, R)")
    for feature, (each, limit) in enumerate(zip(ids, rows, strict=True)):
        if each.numel() and not 0 <= int(each.min()) <= int(each.max()) < limit:
            which = "the table" if isinstance(tables, int) else f"the table of sparse feature {feature}"
            raise InputError(f"ids from {int(each.min())} to {int(each.max())}; {which} has {limit} rows")


def _of_lines(
    model: nn.Module, learner: Learner, log_format: LogFormat, lines: list[str], *, labelled: bool | None
) -> NDArray[np.float32]:
    """By the same passes as `predict`: what it writes to a file is this to the bit."""
    found = np.full(len(lines), np.nan, np.float32)
    if not lines:
        return found
    for number, line in enumerate(lines):
        if not isinstance(line, str):
            raise InputError(f"line {number} is of type {type(line).__name__}; give each line of the log as a text")
    texts = [line.removesuffix("\n").removesuffix("\r") for line in lines]
    for number, text in enumerate(texts):
        if "\n" in text or "\r" in text:
            raise InputError(f"line {number} has a line end in it; give one line of the log a row")
    done = 0
    with tempfile.TemporaryDirectory(prefix="alphastream-") as folder:
        path = Path(folder) / "lines"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8", newline="\n")
        batches = open_lines(
            find_sources([path]).sources,
            replace(log_format, header=False),
            batch_rows=EVALUATION_BATCH_ROWS,
            table_rows=learner.table_rows,
            device=learner.device,
            labelled=labelled,
        )
        try:
            for batch, inputs in batches:
                if inputs is not None:
                    logits = model(inputs.dense, inputs.ids).float()
                    found[done + batch.places()] = logits.sigmoid().cpu().numpy()
                done += batch.lines
        except InputError as error:
            raise InputError(str(error).replace(str(path), "the lines")) from None
    assert done == len(lines), "every line has its place"
    return found


def _has_columns(values: Any) -> bool:
    return hasattr(values, "columns") and (hasattr(values, "to_dict") or hasattr(values, "__arrow_c_stream__"))


def _as_table(values: Any) -> pa.Table | None:
    """A table for what has columns, None for lines."""
    if isinstance(values, pa.RecordBatch):
        return pa.Table.from_batches([values])
    if isinstance(values, pa.Table):
        return values
    if not _has_columns(values):
        return None
    try:
        if type(values).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(values, preserve_index=False)
        return pa.table(values)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise InputError(f"the {type(values).__name__} makes no table: {cause_of(error)}; correct it") from None


def _lines_of(table: pa.Table, log_format: LogFormat) -> list[str]:
    """The rows as lines of the log without label and weight. Columns that no model reads may be missing."""
    needed = {*log_format.dense, *log_format.sparse}
    for name in log_format.columns:
        if name in needed and table.column_names.count(name) != 1:
            has = "has twice" if name in table.column_names else "lacks"
            raise InputError(f"the table {has} column {name!r}; format {log_format.name!r} has {len(needed)} of them")
    columns = []
    for name in log_format.without_label(without_weight=True).columns:
        if name not in needed:
            columns.append(pa.array([""] * len(table), pa.string()))
            continue
        columns.append(_texts(table[name], name, log_format))
    return pc.binary_join_element_wise(*columns, log_format.delimiter).to_pylist()


def _texts(column: pa.ChunkedArray, name: str, log_format: LogFormat) -> pa.Array:
    """A column as a log writes it: a missing value, NaN included, is an empty field.

    Raises: InputError for values that logs write in more than one way.
    """
    if pa.types.is_boolean(column.type) and name in log_format.dense:
        column = column.cast(pa.int8())
    if pa.types.is_boolean(column.type) or pa.types.is_temporal(column.type):
        raise InputError(f"column {name!r} is of type {column.type}; give the texts that the log has for them")
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        numbers = column.drop_null()
        if pc.all(pc.equal(pc.floor(numbers), numbers)).as_py() is not False:
            with suppress(pa.ArrowInvalid):  # as large as no field may be: its line is rejected
                column = column.cast(pa.int64())
    try:
        texts = pc.fill_null(column.cast(pa.string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"column {name!r} of type {column.type} is neither numbers nor texts ({error})") from None
    if pc.any(pc.match_substring_regex(texts, f"[\\r\\n\\x{ord(log_format.delimiter):02x}]")).as_py():
        raise InputError(f"column {name!r} has a delimiter or a line end in a field; take it out")
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
