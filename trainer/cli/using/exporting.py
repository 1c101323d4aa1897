"""The verb that makes files of a trained model for use elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trainer.cli.arguments import parse_arguments
from trainer.console import Console


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a run's model as files that run without this program.

    FOLDER gets model.pt2 (torch.export, any batch size), model.onnx (extra `onnx`), encode.py (plain Python: raw fields
    to the model's inputs), card.json and README.md (columns, encoding, metrics, hashes, how to use it). Programs are
    checked against the model before the folder gets its name.

    Example: alphastream export RUN --out clicks
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to create."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="STEP")] = None
    """The checkpoint of this step instead of the newest."""
    best: bool = False
    """The best weights instead of the newest: the last checkpoint up to the run's lowest validation loss."""
    data: str | None = None
    """Data folder, or a URI of one, that tells the format of lines; for runs of earlier versions whose data moved."""
    onnx: Literal["auto", "yes", "no"] = "auto"
    """Whether to write model.onnx; auto: if the packages of the extra `onnx` are installed."""
    force: bool = False
    """Replace an earlier export in FOLDER."""


def export_verb(arguments: list[str]) -> int:
    """`alphastream export RUN --out FOLDER`."""
    given = parse_arguments(ExportArguments, arguments, "export")
    from trainer.serving import export_run

    export_run(
        given.run,
        given.out,
        checkpoint=given.checkpoint,
        best=given.best,
        data=given.data,
        onnx=given.onnx,
        force=given.force,
        say=Console().say,
    )
    print(given.out)
    return 0
