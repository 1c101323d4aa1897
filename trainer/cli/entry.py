"""The command line: `alphastream VERB`. Finds the verb, runs it, and turns every error into one line and a code."""

from __future__ import annotations

import difflib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import NamedTuple

from pipeline.errors import InputError
from trainer.cli import streams
from trainer.cli.arguments import UsageError
from trainer.cli.data import inspect_verb, preprocess_verb, sample_verb, verify_verb
from trainer.cli.runs import demo_verb, evaluate_verb, export_verb, predict_verb, report_verb, train_verb
from trainer.cli.stall import stall_verb
from trainer.cli.studies import study_verb
from trainer.process import EXIT_INTERRUPTED, is_interruption

EXIT_INPUT, EXIT_STORAGE = 2, 74
EXIT_NOBODY_READS = 128 + signal.SIGPIPE
"""As of any program that a pipe's reader leaves alone."""


class Verb(NamedTuple):
    """One verb: its function, its line in the overview, and what an interruption leaves."""

    run: Callable[[list[str]], int]
    """Takes the arguments after the verb and returns the exit code; imports what it works with when it begins."""
    help: str
    continues: Callable[[Sequence[str]], bool] = lambda arguments: False
    """Whether the same command, with these arguments, goes on where an interrupted one stopped."""


def _always(arguments: Sequence[str]) -> bool:
    return True


def _between_files(arguments: Sequence[str]) -> bool:
    return "-" not in arguments and "--out=-" not in arguments


VERBS = {
    "demo": Verb(demo_verb, "the main job on generated logs: sample, preprocess, train, report", continues=_always),
    "sample": Verb(sample_verb, "write Criteo-shaped TSV days"),
    "preprocess": Verb(preprocess_verb, "TSV to Parquet shards; run again to continue", continues=_always),
    "inspect": Verb(inspect_verb, "rows, splits, label rate, missing rates and sizes of a data folder"),
    "verify": Verb(verify_verb, "re-hash every shard or checkpoint; say what is whole and what is damaged"),
    "train": Verb(train_verb, "the training job; continues where it stopped", continues=_always),
    "evaluate": Verb(evaluate_verb, "loss, AUC and normalized entropy of a run on a split"),
    "predict": Verb(predict_verb, "probabilities for the lines of a log, in order", continues=_between_files),
    "export": Verb(export_verb, "a run's model as torch program, ONNX, plain-Python encoder and card"),
    "study": Verb(study_verb, "a grid of runs from one file; run again to continue", continues=_always),
    "stall": Verb(stall_verb, "where a step's time goes: computing, preparing rows, or fetching them"),
    "report": Verb(report_verb, "figures and tables of a run or a study"),
}


def run_command(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 bad input, 3 diverged, 74 I/O failed, 143 stopped.

    As a program, without `argv`, it also sees to its standard streams (`trainer.cli.streams`). Results go to standard
    output when the work is done, so one that cannot be written changes the code (74), not the work.
    """
    if argv is None:
        streams.prepare()
    code = _run_safely(list(sys.argv[1:] if argv is None else argv))
    with suppress(OSError):
        sys.stdout.flush()  # what is left of a failed command; the interpreter's own try would change the code
    return code


def _run_safely(arguments: list[str]) -> int:
    """The exit code of one command, whatever it raises."""
    as_json = "--json" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BaseException as error:
        if is_interruption(error):
            verb = VERBS.get(arguments[0]) if arguments else None
            remedy = " to continue" if verb and verb.continues(arguments[1:]) else ""
            return _fail(f"interrupted; run the same command again{remedy}", EXIT_INTERRUPTED, as_json=as_json)
        return _failed(error, as_json=as_json)
    return code


def _failed(error: BaseException, *, as_json: bool) -> int:
    """The exit code of what a command raised, and its line. Raises: the error, if it is nothing that a user did."""
    match error:
        case InputError():
            return _fail(str(error), EXIT_INPUT, as_json=as_json)
        case BrokenPipeError():
            return EXIT_NOBODY_READS  # whoever read the output, such as `head`, has enough
        case streams.OutputError():
            return _fail(f"standard output: {error.strerror}; the work is done, what it printed is lost", EXIT_STORAGE)
        case OSError():
            text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            return _fail(text, EXIT_STORAGE, as_json=as_json)
        case _:
            raise error


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"alphastream {version('alphastream')}")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        raise UsageError(
            f"{name!r} is not a verb; " + (f"did you mean {near[0]!r}?" if near else "see alphastream --help")
        )
    try:
        return VERBS[name].run(rest)
    except SystemExit as stop:  # the parser's, once it has printed a verb's help
        if stop.code:
            raise
        return 0


def _fail(message: str, code: int, *, as_json: bool = False) -> int:
    """One line on standard error; with --json an object on standard output as well, if that can be written."""
    message = " ".join(message.split())
    print(f"alphastream: {message}", file=sys.stderr)
    if as_json:
        with suppress(OSError):
            print(json.dumps({"error": message, "exit_code": code}), flush=True)
    return code


def _overview() -> str:
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"""usage: alphastream VERB [options]

Streams click logs to a DLRM and measures, while it trains, how long the next step should be.

verbs:
{verbs}

alphastream VERB --help tells a verb's options, alphastream --version the version.
exit codes: 0 done, 2 bad configuration or input, 3 training diverged, 74 I/O failed
(also if the work is done but standard output is full), 143 stopped and resumable"""
