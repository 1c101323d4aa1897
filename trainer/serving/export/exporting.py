"""The folder of an exported model: written under another name, checked, and given its name when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from pprint import pformat
from typing import Literal

from torch import nn

from pipeline.errors import InputError
from pipeline.schema import LogFormat
from pipeline.shards import Manifest, sync_file, sync_folder
from trainer.serving.export.card import encoder_parameters, model_card, write_card
from trainer.serving.export.programs import (
    CHECKED_ROWS,
    check_onnx,
    check_torch_program,
    missing_onnx_packages,
    sample_inputs,
    trace,
    write_onnx,
    write_torch_program,
)
from trainer.serving.opened import OpenedRun, open_run, plain_model

_TEMPLATE = Path(__file__).parent / "templates" / "encode.py.txt"
_PLACE = '"@FORMAT@"'
CARD = "card.json"


def export_run(
    run: str | Path,
    folder: Path,
    *,
    checkpoint: int | None = None,
    best: bool = False,
    data: str | None = None,
    onnx: Literal["auto", "yes", "no"] = "auto",
    force: bool = False,
    say: Callable[[str], None],
) -> int:
    """Writes the weights that answer, of a checkpoint of `run`, into `folder`; returns the checkpoint's step.

    `data` is a data folder of the format of lines, for runs that do not tell it. `onnx` "auto" writes that file if the
    packages for it are there. `force` replaces an earlier export. `say` is told of progress.
    Raises: InputError for a folder that is there, missing packages, or a model that cannot be exported; as `open_run`;
    StorageError or OSError if the files cannot be written. There is no folder then, or the one that was there.
    """
    _refuse_existing(folder, force=force)
    lacking = missing_onnx_packages() if onnx != "no" else []
    if lacking and onnx == "yes":
        raise InputError(f"--onnx yes: {', '.join(lacking)} not installed; pip install 'alphastream[onnx]'")
    opened = open_run(run, checkpoint=checkpoint, best=best, manifest=None if data is None else Manifest.load(data))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with opened.learner.answering() as model:
            checks = _write_programs(opened, plain_model(model), partial, onnx=onnx != "no" and not lacking, say=say)
        (partial / "encode.py").write_text(
            encoder_source(opened.log_format, opened.learner.table_rows), encoding="utf-8"
        )
        write_card(partial, model_card(opened, checks))
        for path in partial.iterdir():
            sync_file(path)
        sync_folder(partial)
        _publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if lacking:
        say(f"no model.onnx: {', '.join(lacking)} not installed; pip install 'alphastream[onnx]' and export again")
    return opened.step


def encoder_source(log_format: LogFormat, table_rows: int | tuple[int, ...]) -> str:
    """`encode.py` for lines of a format and a table of so many rows, or one each for its sparse columns."""
    parameters = pformat(encoder_parameters(log_format, table_rows), width=118, compact=True, sort_dicts=False)
    return _TEMPLATE.read_text(encoding="utf-8").replace(_PLACE, parameters)


def _write_programs(
    opened: OpenedRun, model: nn.Module, folder: Path, *, onnx: bool, say: Callable[[str], None]
) -> dict[str, float]:
    """The largest difference of each program from the model."""
    log_format = opened.log_format
    tables = opened.learner.tables
    sizes = (tables,) * len(log_format.sparse) if isinstance(tables, int) else tables
    batches = [sample_inputs(rows, dense_features=len(log_format.dense), table_rows=sizes) for rows in CHECKED_ROWS]
    say(f"step {opened.step:,}: writing model.pt2")
    program = trace(model, batches[-1])
    write_torch_program(program, folder / "model.pt2")
    say("checking model.pt2 against the model")
    checks = {"model.pt2": check_torch_program(folder / "model.pt2", model, batches)}
    if onnx:
        say("writing model.onnx")
        write_onnx(program, batches[-1], folder / "model.onnx")
        say("checking model.onnx against the model")
        checks["model.onnx"] = check_onnx(folder / "model.onnx", model, batches)
    return checks


def _refuse_existing(folder: Path, *, force: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not force:
        raise InputError(f"{folder}: is there already; give another --out, or --force to replace an earlier export")
    if not (folder / CARD).is_file():
        raise InputError(f"{folder}: is no earlier export (it has no {CARD}), so --force leaves it; give another --out")


def _publish(partial: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
