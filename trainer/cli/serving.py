"""The verbs on what was trained: predict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from trainer.cli.arguments import parse_arguments
from trainer.console import Console

if TYPE_CHECKING:
    from trainer.console import ProgressLine
    from trainer.serving import Predicted


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Write a run's probability of a click for every line of a log, in order.

    Lines are of the format that the run's data was made of, with or without the label column. A line that preprocessing
    would reject keeps its place: its probability is null (in text nan). Scores are those of `evaluate`: the same
    weights, averaged where the run averages, in the same passes. Where lines have labels, loss and AUC are told at the
    end.

    Run again after an interruption it goes on where it stopped, unless it reads standard input or writes standard
    output. Until it is done the scores are in FILE.partial, 5 bytes a line.

    Example: alphastream predict RUN day_23.gz --out scores.parquet
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC...")]
    """Log files, plain, gz or zst; folders, patterns or URIs of them; - for standard input; or one data folder."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """FILE.parquet (one float32 column, probability), FILE.csv (the same with a header), or - for standard output, one
    probability a line."""
    split: Literal["train", "validation", "test"] = "validation"
    """Of a data folder: which split."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Whether lines have the label column; auto: told from the number of fields of the first."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="STEP")] = None
    """The checkpoint of this step instead of the newest."""
    best: bool = False
    """The best weights instead of the newest: the last checkpoint up to the run's lowest validation loss."""
    data: str | None = None
    """A data folder of the run's format, for runs of earlier versions, whose checkpoints do not tell of it."""
    force: bool = False
    """Replace FILE if it is there."""
    json: bool = False
    """One JSON object at the end instead of sentences; on standard error if scores go to standard output."""


def predict_verb(arguments: list[str]) -> int:
    """`alphastream predict RUN SRC... --out FILE`."""
    given = parse_arguments(PredictArguments, arguments, "predict")
    from trainer.serving import predict_run

    console = Console()
    line: ProgressLine | None = None

    def report(predicted: Predicted, total: int | None) -> None:
        nonlocal line
        if line is None:
            line = console.progress("predict", total, unit="lines", start=predicted.resumed_lines)
        line.update(predicted.lines, lambda: f"{predicted.rejected_lines:,} rejected" if predicted.examples else "")

    try:
        predicted = predict_run(
            given.run,
            given.sources,
            given.out,
            split=given.split,
            labelled={"auto": None, "yes": True, "no": False}[given.labels],
            checkpoint=given.checkpoint,
            best=given.best,
            data=given.data,
            force=given.force,
            report=report,
        )
    finally:
        if line is not None:
            line.close()
    if given.json:
        names = ("step", "lines", "rows", "rejected_lines", "resumed_lines")
        values = {name: getattr(predicted, name) for name in names}
        evaluation = asdict(predicted.evaluation) if predicted.evaluation else None
        text = json.dumps({**values, "evaluation": evaluation})
        console.say(text) if given.out == "-" else print(text)
        return 0
    for each in predicted.examples:
        console.warn(f"{each.source}, line {each.number}: {each.reason}; its probability is null")
    if predicted.rejected_lines:
        console.warn(
            f"{predicted.rejected_lines:,} of {predicted.lines:,} lines were rejected; they have no probability"
        )
    console.say(_outcome(given.out, predicted))
    return 0


def _outcome(out: str, predicted: Predicted) -> str:
    where = "" if out == "-" else f"{out}: "
    text = f"{where}{predicted.lines:,} lines by the weights of step {predicted.step:,}"
    found = predicted.evaluation
    if found is None:
        return text
    auc = "none" if found.auc is None else f"{found.auc:.5f}"
    return f"{text}; loss {found.loss:.5f}, AUC {auc} on {found.rows:,} rows with labels"
