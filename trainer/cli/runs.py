"""The verbs on runs: demo, train, evaluate, export, predict, report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ops.receivers import ServiceManager
from pipeline.errors import InputError
from trainer.budget import BudgetConfig
from trainer.cli.arguments import parse_arguments, parse_first
from trainer.cli.demo import DemoConfig, run_demo
from trainer.cli.settings import asks_for_help, current_arguments, settings_for_help
from trainer.cli.tables import cell_text, print_table
from trainer.config import Config, load_config
from trainer.console import Console
from trainer.study import is_study

if TYPE_CHECKING:
    from trainer.console import ProgressLine
    from trainer.serving import Predicted


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """The two arguments that come before the settings."""

    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")]
    """TOML file of the run's settings, by section."""
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Run directory: created, or continued where it stopped."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments(RunArguments):
    """Train a model on preprocessed click logs, continuing RUN where it stopped.

    Every --section.key below is also a key of the TOML file; given here, it overrides the file's. Defaults are those of
    preset dlrm-tiny; None stands for no value.

    Terms: a step trains on one batch (B2), and α* is measured on another (B1, the probe batch). A row group is 65,536
    rows of a shard, read and decompressed at once. GGN: the generalized Gauss-Newton matrix, the curvature that α* is
    taken from.

    Example: alphastream train run.toml --run RUN --optimizer.lr 0.001 --budget.epochs 1
    """

    from_checkpoint: Annotated[int | None, tyro.conf.arg(name="from-checkpoint", metavar="STEP")] = None
    """Go on from RUN's checkpoint of this step instead of its newest. Later ones are set aside, and deleted once the
    run has saved a later step again; give it once, since it goes back each time."""
    ranks: Annotated[int, tyro.conf.arg(name="ranks")] = 1
    """Processes on this machine that train the run together, with a CUDA device each where there are any; each holds
    its share of the table's rows. On several machines: torchrun."""
    max_restarts: Annotated[int, tyro.conf.arg(name="max-restarts")] = 3
    """With several ranks: how often all of them start again, from the newest checkpoint, after one was lost."""
    grace_seconds: Annotated[float, tyro.conf.arg(name="grace-seconds")] = 600.0
    """With several ranks: how long they may take to save and end once they are told to stop; then they are killed."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def train_verb(arguments: list[str]) -> int:
    """`alphastream train CONFIG.toml --run RUN [--section.key value]`."""
    if asks_for_help(arguments):
        default = TrainArguments(config=tyro.MISSING, run=tyro.MISSING, settings=settings_for_help())
    else:
        arguments = current_arguments(arguments, "train")
        known = parse_first(RunArguments, arguments, "train")
        default = TrainArguments(config=known.config, run=known.run, settings=load_config(known.config))
    given = parse_arguments(TrainArguments, arguments, "train", default=default, underscores=True)
    if given.ranks != 1:
        from trainer.launch import launch_training

        patience = {"max_restarts": given.max_restarts, "grace_seconds": given.grace_seconds}
        return launch_training(arguments, run=given.run, ranks=given.ranks, **patience, console=Console())
    manager = ServiceManager.from_environment()
    manager.starting("loading torch")
    from trainer.job import train
    from trainer.ranks import open_ranks

    console = Console()
    if given.settings.budget == BudgetConfig():
        console.say("no budget is set, so it trains until it is stopped; --budget.steps, .epochs or .seconds ends it")
    with open_ranks(given.settings.ranks) as ranks:
        stop = train(
            given.settings,
            given.run,
            console=console,
            manager=manager,
            from_checkpoint=given.from_checkpoint,
            ranks=ranks,
        )
    return stop.exit_code


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Evaluate a run's newest checkpoint, or its best: loss, AUC and normalized entropy of a split.

    The exact AUC differs from the one shown by at most `auc error`, which is 0 up to 33 million rows.
    Normalized entropy is the loss over that of the label rate alone; below 1 is useful. Rows that have weights count as
    often as these say, unless the run has loss.sample_weights = false; `weight` is their sum then.

    Example: alphastream evaluate RUN --split test
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    best: bool = False
    """The best weights instead of the newest: the last checkpoint up to the run's lowest validation loss."""
    split: Literal["train", "validation", "test"] = "validation"
    """Which split."""
    rows: int | None = None
    """Rows to evaluate on, from the split's start; by default all."""
    data: str | None = None
    """Data folder, or a URI of one; by default the one the run trains on."""
    json: bool = False
    """One JSON object instead of a table."""


def evaluate_verb(arguments: list[str]) -> int:
    """`alphastream evaluate RUN`."""
    given = parse_arguments(EvaluateArguments, arguments, "evaluate")
    from trainer.serving import evaluate_run

    step, evaluation = evaluate_run(given.run, split=given.split, rows=given.rows, data=given.data, best=given.best)
    values = {"step": step, **evaluation.values()}
    if given.json:
        print(json.dumps(values))
    else:
        print_table(("", ""), [(key.replace("_", " "), cell_text(value)) for key, value in values.items()])
    return 0


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Write a run's probability of a click for every line of a log, in order.

    Lines are of the format that the run's data was made of, with or without the label column. A line that preprocessing
    would reject keeps its place: its probability is null (in text nan). Scores are those of `evaluate`: the same
    weights, averaged where the run averages, in the same passes. Where lines have labels, loss and AUC are told at the
    end.

    Run again after an interruption it goes on where it stopped, unless it reads standard input or writes standard
    output. Until it is done the scores are in FILE.partial, 9 bytes a line, 13 of a format with
    weights.

    Example: alphastream predict RUN day_23.gz --out scores.parquet
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC...")]
    """Log files, plain or packed; folders, patterns or URIs of them; - for standard input; or one data folder or its
    URI."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """FILE.parquet (one float32 column, probability), FILE.csv (the same with a header), or - for standard output, one
    probability a line."""
    split: Literal["train", "validation", "test"] | None = None
    """Of a data folder: which split; by default validation."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Whether lines have the label column; auto: told from the first ones."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="STEP")] = None
    """The checkpoint of this step instead of the newest."""
    best: bool = False
    """The best weights instead of the newest: the last checkpoint up to the run's lowest validation loss."""
    data: str | None = None
    """A data folder of the run's format, for runs of earlier versions, whose checkpoints do not tell of it."""
    rejects: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the rejected lines there, as preprocess does: source, line number, reason and the line, with tabs
    between them; empty if there are none."""
    force: bool = False
    """Replace FILE if it is there, and drop what is left of an interrupted call for other scores."""
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
            rejects=given.rejects,
            force=given.force,
            report=report,
            warn=console.warn,
        )
    finally:
        if line is not None:
            line.close()
    if given.json:
        names = ("step", "lines", "rows", "rejected_lines", "resumed_lines")
        values = {name: getattr(predicted, name) for name in names}
        evaluation = predicted.evaluation.values() if predicted.evaluation else None
        text = json.dumps({**values, "evaluation": evaluation})
        console.say(text) if given.out == "-" else print(text)
        return 0
    for each in predicted.examples:
        console.warn(f"{each.source}, line {each.number}: {each.reason}; its probability is null")
    if predicted.rejected_lines:
        console.warn(
            f"{predicted.rejected_lines:,} of {predicted.lines:,} lines were rejected; they have no probability"
            + ("" if given.rejects is None else f", and are in {given.rejects}")
        )
    console.say(_predicted_text(given.out, predicted))
    return 0


def _predicted_text(out: str, predicted: Predicted) -> str:
    where = "" if out == "-" else f"{out}: "
    text = f"{where}{predicted.lines:,} lines by the weights of step {predicted.step:,}"
    found = predicted.evaluation
    if found is None:
        return text
    weighted = "" if found.weight is None else ", weighted"
    auc = "none" if found.auc is None else f"{found.auc:.5f}"
    return f"{text}; loss {found.loss:.5f}, AUC {auc} on {found.rows:,} rows with labels{weighted}"


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a run's model as files that run without this program.

    FOLDER gets model.pt2 (torch.export, any batch size), model.onnx (extra `onnx`), encode.py (plain Python: raw fields
    to the model's inputs), card.json and card.html (columns, encoding, metrics, hashes, how to use it). Programs are
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


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Write figures (PNG) and tables (CSV, HTML) of a run into RUN/report, of a study into its folder.

    Example: alphastream report RUN
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DIR")]
    """Run directory, or a study's folder; one in progress is reported as far as it is."""


def report_verb(arguments: list[str]) -> int:
    """`alphastream report RUN|DIR`."""
    folder = parse_arguments(ReportArguments, arguments, "report").run
    if (folder / "manifest.json").is_file():
        raise InputError(f"{folder} is a data folder; give a run directory or a study's folder, or use inspect")
    if is_study(folder):
        from trainer.study import write_study_report

        print(write_study_report(folder))
    else:
        from trainer.report import write_report

        print(write_report(folder))
    return 0


def demo_verb(arguments: list[str]) -> int:
    """`alphastream demo`."""
    return run_demo(parse_arguments(DemoConfig, arguments, "demo"), console=Console()).exit_code
