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
from pipeline.errors import InputError
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
            return _of_tensors(model, learner, values)
        if isinstance(values, str):
            raise InputError("one text was given; give a list of lines")
        table = _as_table(values)
        if table is None:
            lines = list(values)
        else:
            lines, labelled = _lines_of(table, log_format)
        return _of_lines(model, learner, log_format, lines, labelled=labelled)


def _of_tensors(model: nn.Module, learner: Learner, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    if len(inputs) != 2 or not all(isinstance(part, Tensor) for part in inputs):
        raise InputError("a tuple was given; give a pair of tensors (dense, ids), or a list of lines")
    dense, ids = inputs
    if dense.ndim != 2 or ids.ndim != 2 or ids.shape[1] != len(dense):
        raise InputError(
            f"dense {tuple(dense.shape)} and ids {tuple(ids.shape)} do not fit; give dense (R, D) and ids (S, R)"
        )
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
    texts = [line.removesuffix("\n").removesuffix("\r") for line in lines]
    for number, text in enumerate(texts):
        if "\n" in text or "\r" in text or not text:
            raise InputError(f"line {number} is empty or has a line end in it; give one line of the log a row")
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


def _as_table(values: Any) -> pa.Table | None:
    """A table for what has columns, None for lines."""
    if isinstance(values, pa.RecordBatch):
        return pa.Table.from_batches([values])
    if isinstance(values, pa.Table):
        return values
    if hasattr(values, "columns") and hasattr(values, "to_dict"):
        return pa.Table.from_pandas(values, preserve_index=False)
    return None


def _lines_of(table: pa.Table, log_format: LogFormat) -> tuple[list[str], bool]:
    """The rows as lines of the log, and whether they have the label. Columns that no model reads may be missing."""
    given = {log_format.label, *filter(None, [log_format.weight])}
    labelled = given <= set(table.column_names)  # a label without its weight is of no use, and needs none here
    read = given if labelled else set()
    needed = {*log_format.dense, *log_format.sparse}
    if missing := sorted(needed - set(table.column_names)):
        raise InputError(f"the table lacks column {missing[0]!r}; format {log_format.name!r} has {len(needed)} of them")
    columns = []
    for name in log_format.columns:
        if name == log_format.label and not labelled:
            continue
        if name not in needed and name not in read:
            columns.append(pa.array([""] * len(table), pa.string()))
            continue
        columns.append(_texts(table[name], name, log_format.delimiter))
    return pc.binary_join_element_wise(*columns, log_format.delimiter).to_pylist(), labelled


def _texts(column: pa.ChunkedArray, name: str, delimiter: str) -> pa.Array:
    """A column as a log writes it: a missing value, NaN included, is an empty field."""
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
    if pc.any(pc.match_substring_regex(texts, f"[\\r\\n\\x{ord(delimiter):02x}]")).as_py():
        raise InputError(f"column {name!r} has a delimiter or a line end in a field; take it out")
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
