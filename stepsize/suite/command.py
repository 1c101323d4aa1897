"""`python -m stepsize.suite --out DIR --data FOLDER`: run the suite, or continue it, and write its page."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from stepsize.suite.methods import METHODS, REFERENCE, package
from stepsize.suite.problems.problem import Task
from stepsize.suite.problems.rows import NEEDS_SKLEARN, SuiteError, missing_file, sklearn_datasets
from stepsize.suite.problems.tasks import TASKS, named_task
from stepsize.suite.report import score, write_suite_report
from stepsize.suite.report.figures import matplotlib_module
from stepsize.suite.runner import RunsOfStudy
from stepsize.suite.store import RunStore

DONE, BAD_INPUT, IO_FAILED = 0, 2, 74
EPILOG = """\
Runs are kept in DIR/runs; the same command continues where it was stopped, and remakes what would come out
differently now. DIR/index.html is written as each task is finished. Example:

  {program} --out /tmp/rates --data ../shared/data --tasks digits-mlp,text-gru
"""


def suite_command(arguments: Sequence[str] | None = None, *, program: str = "python -m stepsize.suite") -> int:
    """Run the command, called `program`; returns its exit code.

    0: done. 2: bad input. 74: I/O failed. 130 and 143: stopped by a signal; the same command continues.
    """
    try:
        given = _parse(sys.argv[1:] if arguments is None else arguments, program)
    except SystemExit as ended:
        return int(ended.code or 0)
    out, asked = Path(given.out), list[int]()
    try:
        with _lock(out), _signals_interrupt(asked):
            return _study(given, out)
    except BaseException as error:
        if asked:  # whatever became of the interruption on its way: Python 3.11 turns some into a RuntimeError
            return _fail("stopped; the same command continues", 128 + asked[0])
        match error:
            case KeyboardInterrupt():
                return _fail("stopped; the same command continues", 128 + signal.SIGINT)
            case SuiteError() | ValueError():
                return _fail(str(error), BAD_INPUT)
            case OSError():
                return _fail(f"{error.filename or out}: {error.strerror or error}", IO_FAILED)
            case _:
                raise


def _parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Compare rules for the learning rate with the best tuned rate, on small tasks.",
        epilog=EPILOG.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the study: its runs, tables and page")
    parser.add_argument(
        "--data", metavar="FOLDER", help="folder of the click logs and the text; tasks without are skipped"
    )
    parser.add_argument("--tasks", metavar="A,B", help="names of tasks (default: all)", default="")
    parser.add_argument("--methods", metavar="A,B", help=f"default: all of {', '.join(METHODS)}", default="")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method and rate (default 5)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each (default 2)")
    return parser.parse_args(arguments)


def _study(given: argparse.Namespace, out: Path) -> int:
    methods, asked = _methods(given.methods), _tasks(given.tasks)
    for name in ("seeds", "jobs"):
        if getattr(given, name) < 1:
            raise SuiteError(f"--{name}: {getattr(given, name)} is not positive; give 1 or more")
    data = Path(given.data) if given.data else None
    if data is not None and not data.is_dir():
        raise SuiteError(f"--data: {data} is no folder; give the one that holds the logs and the text")
    skipped = {task.name: why for task in asked if (why := missing_file(task.source, data)) is not None}
    tasks = [task for task in asked if task.name not in skipped]
    if not tasks:
        raise SuiteError("no task is left: " + "; ".join(f"{name} {why}" for name, why in skipped.items()))
    _check_installed(tasks, methods)
    for name, why in skipped.items():
        print(f"skipped: {name} {why}", file=sys.stderr)
    store = RunStore(out / "runs", data)

    def report(_: object = None) -> None:
        scores = score(tasks, methods, given.seeds, study.lookup)
        write_suite_report(out, scores, tasks=asked, skipped=skipped)

    study = RunsOfStudy(
        tasks=tasks,
        methods=methods,
        seeds=given.seeds,
        jobs=given.jobs,
        store=store,
        data=data,
        finished_task=report,
    )
    study.make()
    report()
    print(out / "index.html")
    return DONE


def _methods(given: str) -> list[str]:
    names = [name for name in given.split(",") if name] or list(METHODS)
    for name in names:
        if name not in METHODS:
            raise SuiteError(f"--methods: there is no {name!r}; there are {', '.join(METHODS)}")
    if REFERENCE not in names:
        raise SuiteError(f"--methods: {REFERENCE!r} is what the others are compared with; name it, too")
    return [name for name in METHODS if name in names]


def _tasks(given: str) -> list[Task]:
    names = [name for name in given.split(",") if name] or list(TASKS)
    return list({name: named_task(name) for name in names}.values())


def _check_installed(tasks: Sequence[Task], methods: Sequence[str]) -> None:
    """Say what is not installed before anything runs, not an hour later.

    Raises: SuiteError that names it.
    """
    matplotlib_module()
    if any(task.source in NEEDS_SKLEARN for task in tasks):
        sklearn_datasets()
    for name in methods:
        if (module := METHODS[name].package) is not None:
            package(module)


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep a second study out of the folder; whatever ends this one lets go of it.

    Raises: SuiteError where there is one.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # another system than Unix: two studies would only do the same work twice
        yield
        return
    with (out / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SuiteError(f"--out: another study runs in {out}; wait for it, or give another folder") from None
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def _signals_interrupt(asked: list[int]) -> Iterator[None]:
    """INT, unless it is ignored, and TERM raise KeyboardInterrupt and are added to `asked`."""

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(sentence: str, code: int) -> int:
    print(f"rates: {sentence}", file=sys.stderr)
    return code
