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

_TEMPLATES = Path(__file__).parent / "templates"
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
        "rows_trained": opened.checkpoint.state["position"]["rows"],
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
    """`card.html`, a page without anything beside it, and `card.json`, with size and SHA-256 of every file that is in
    `folder`."""
    from trainer.report import page_text  # and with it matplotlib, which nobody needs who only opens a run

    card = card | {"files": _hashed(folder)}
    columns = [(name, _role(name, card["format"])) for name in card["format"]["columns"]]
    page = page_text("card.html", _TEMPLATES, card=card, columns=columns)
    (folder / "card.html").write_text(page, encoding="utf-8")
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
