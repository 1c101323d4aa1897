"""The card of an exported model: what it is, what it takes, how good it was, as JSON and as a page to read."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.schema import LogFormat
from trainer.records import read_records
from trainer.serving.opened import OpenedRun

ENCODING = (
    "A field is missing if it is empty or one of `missing`.",
    "dense (R, D) float32: log(max(x, 0) + 1) of a whole number in int32, rounded to float32 before the logarithm and "
    "after it; missing as 0.",
    "ids (S, R) int32: int32(float32(bucket)) mod table_rows (its j-th number, if it is a list), where bucket = "
    "Fingerprint64(field ‖ decimal j) mod bucket_sizes[j], j the position in `sparse`, Fingerprint64 FarmHash's; a "
    "missing field is hashed as `default_category`.",
    "probability (R,) float32: of a click, or whatever the label 1 stands for.",
)

_FIGURES = ("step", "rows", "loss", "auc", "normalized_entropy", "calibration")


def encoder_parameters(log_format: LogFormat, table_rows: int | tuple[int, ...]) -> dict[str, Any]:
    """What `encode.py` needs to know."""
    return log_format.to_dict() | {"table_rows": table_rows if isinstance(table_rows, int) else list(table_rows)}


def model_card(opened: OpenedRun, checks: dict[str, float]) -> dict[str, Any]:
    """The card, but for its files. `checks` are the largest differences from the model, by file."""
    config, step = opened.config, opened.step
    parameters = sum(each.numel() for each in opened.learner.model.parameters())
    return {
        "name": opened.run.resolve().name,
        "model": type(opened.learner.model).__name__,
        "parameters": parameters,
        "run": str(opened.run.resolve()),
        "step": step,
        "batch_rows": config.data.batch_rows,
        "averaged_weights": opened.learner.average is not None,
        "format": encoder_parameters(opened.log_format, opened.learner.table_rows),
        "tables": opened.learner.tables if isinstance(opened.learner.tables, int) else list(opened.learner.tables),
        "inputs": {
            "dense": {"shape": ["rows", len(opened.log_format.dense)], "dtype": "float32"},
            "ids": {"shape": [len(opened.log_format.sparse), "rows"], "dtype": "int32"},
        },
        "outputs": {"probability": {"shape": ["rows"], "dtype": "float32"}},
        "encoding": list(ENCODING),
        "evaluations": _last_evaluations(opened.run, step),
        "largest_difference_from_the_model": checks,
        "versions": {
            "alphastream": version("alphastream"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """`README.md` and `card.json`, with size and SHA-256 of every file that is in `folder`."""
    card = card | {"files": _hashed(folder)}
    (folder / "README.md").write_text(_page(card), encoding="utf-8")
    card["files"] = _hashed(folder)
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hashed(folder: Path) -> dict[str, dict[str, Any]]:
    entries = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            entries[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    return entries


def _last_evaluations(run: Path, step: int) -> dict[str, dict[str, Any]]:
    """The last evaluation of each split up to `step`."""
    found: dict[str, dict[str, Any]] = {}
    for record in read_records(run / "evals.jsonl", damaged=lambda _: None):
        split = record.get("split")
        if isinstance(split, str) and found.get(split, {"step": -1})["step"] <= record["step"] <= step:
            found[split] = {name: record.get(name) for name in _FIGURES}
    return found


def _page(card: dict[str, Any]) -> str:
    log_format = card["format"]
    columns = "\n".join(f"| {name} | {_role(name, log_format)} |" for name in log_format["columns"])
    figures = "\n".join(
        f"| {split} | {' | '.join(_figure(values.get(name)) for name in ('step', 'rows', 'loss', 'auc'))} |"
        for split, values in card["evaluations"].items()
    )
    files = "\n".join(f"| {name} | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in card["files"].items())
    encoding = "\n".join(f"- {rule}" for rule in card["encoding"])
    onnx = _ONNX_EXAMPLE if "model.onnx" in card["files"] else "There is no ONNX file here."
    averaged = "averaged weights" if card["averaged_weights"] else "weights"
    tables = card["tables"]
    rows = f"{tables:,} table rows" if isinstance(tables, int) else f"{sum(tables):,} rows in {len(tables)} tables"
    return f"""# {card["name"]}

{card["model"]}, {card["parameters"]:,} parameters, {rows}: {averaged} of step
{card["step"]:,}. Written by alphastream {card["versions"]["alphastream"]} with torch {card["versions"]["torch"]}.

## Use
`encode.py` needs Python 3.9 or later, `model.pt2` torch, `model.onnx` onnxruntime; nothing of alphastream, and no
pickle.

```python
import torch
from encode import encode_line
dense, ids = zip(*map(encode_line, open("lines", "rb")))
model = torch.export.load("model.pt2").module()
print(model(torch.tensor(dense), torch.tensor(ids, dtype=torch.int32).T))
```

{onnx}

## Encoding
{encoding}

`missing` = {log_format["missing"]}, `default_category` = {log_format["default_category"]!r}, delimiter
{log_format["delimiter"]!r}, hexadecimal categories: {"yes" if log_format["hexadecimal"] else "no"}.

| column | |
|---|---|
{columns}

## Evaluations
The last of each split up to this step; `alphastream evaluate` makes one of this very step.

| split | step | rows | loss | AUC |
|---|---|---|---|---|
{figures}

## Files
| file | bytes | SHA-256 |
|---|---|---|
{files}
"""


_ONNX_EXAMPLE = """```python
import numpy, onnxruntime
from encode import encode_line
dense, ids = zip(*map(encode_line, open("lines", "rb")))
model = onnxruntime.InferenceSession("model.onnx")
print(model.run(None, {"dense": numpy.array(dense, "float32"), "ids": numpy.array(ids, "int32").T})[0])
```"""


def _role(name: str, log_format: dict[str, Any]) -> str:
    if name == log_format["label"]:
        return "label, may be left out"
    if name == log_format.get("weight"):
        return "how often the row counts; may be left out with the label"
    if name in log_format["dense"]:
        return "whole number"
    if name in log_format["sparse"]:
        slot = log_format["sparse"].index(name)
        return f"category {slot}, {log_format['bucket_sizes'][slot]:,} buckets"
    return "ignored"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6f}"
