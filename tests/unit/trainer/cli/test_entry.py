"""Finding the verb, and one line and a code for whatever goes wrong."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from ops.server import PortInUseError
from pipeline.errors import InputError, StorageError
from trainer.cli import entry as cli
from trainer.cli.arguments import UsageError, parse_arguments, parse_first
from trainer.cli.tables import cell_text, print_table
from trainer.config import ConfigError
from trainer.report.report import ReportError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Gives the verb `try` a function of the test's."""

    def install(run: Callable[[list[str]], int]) -> None:
        monkeypatch.setitem(cli.VERBS, "try", cli.Verb(run, "a verb of the test"))

    return install


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_has_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in cli.VERBS.items():
        assert any(line.split() == [name, *entry.help.split()] for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"alphastream {version('alphastream')}\n"


def test_a_verb_gets_its_arguments_and_gives_its_code(verb: Callable[[Any], None]) -> None:
    seen: list[str] = []

    def run(arguments: list[str]) -> int:
        seen.extend(arguments)
        return 3

    verb(run)
    assert cli.run_command(["try", "a", "--b", "c"]) == 3
    assert seen == ["a", "--b", "c"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("day.tsv:4 has\n 39 fields"), 2, "day.tsv:4 has 39 fields"),
        (ConfigError("budget.step is not a key"), 2, "budget.step is not a key"),
        (UsageError("--run is missing"), 2, "--run is missing"),
        (ReportError("RUN: is not a run"), 2, "RUN: is not a run"),
        (StorageError("part-00000.parquet is damaged"), 74, "part-00000.parquet is damaged"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "steps.jsonl"), 74, "steps.jsonl: No space left on device"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 74, "Input/output error"),
        (KeyboardInterrupt(), 143, "interrupted; run the same command again"),
    ],
)
def test_errors_are_one_line_and_a_code(
    verb: Callable[[Any], None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    verb(fail)
    assert cli.run_command(["try"]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("alphastream: ")
    assert said in line


@pytest.mark.parametrize(("name", "remedy"), [("preprocess", "again to continue"), ("verify", "again")])
def test_an_interruption_promises_no_more_than_the_verb_keeps(
    name: str, remedy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, name, cli.VERBS[name]._replace(run=stop))
    assert cli.run_command([name]) == 143
    assert capsys.readouterr().err == f"alphastream: interrupted; run the same command {remedy}\n"


def test_an_interruption_that_was_taken_for_bad_input_is_one_all_the_same(
    verb: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's file that is being imported when a signal comes; one whose code says no more than that it failed."""

    def half_imported(*_: Any) -> int:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise RuntimeError("Error calling __set_name__") from error  # as Python 3.11 does
        except RuntimeError:
            raise InputError("model.py does not import") from None

    verb(half_imported)
    assert cli.run_command(["try"]) == 143
    assert capsys.readouterr().err == "alphastream: interrupted; run the same command again\n"


def test_bad_input_beside_an_interruption_that_was_dealt_with_is_bad_input(
    verb: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> int:
        try:
            raise InputError("nothing there")
        finally:
            with suppress(KeyboardInterrupt):
                raise KeyboardInterrupt

    verb(refuse)
    assert cli.run_command(["try"]) == 2
    assert "nothing there" in capsys.readouterr().err


def test_a_fault_of_the_program_is_not_hidden(verb: Callable[[Any], None]) -> None:
    def fail(arguments: list[str]) -> int:
        raise PortInUseError("nobody turned this into an error of the user's")

    verb(fail)
    with pytest.raises(PortInUseError):
        cli.run_command(["try"])


@dataclass(frozen=True, kw_only=True)
class Section:
    steps: int | None = None
    kind: str = "sliding"
    share: float = 0.5
    widths: tuple[int, ...] | None = None
    betas: tuple[float, float] | None = None
    folder: Path | None = None
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.steps == 0:
            raise ValueError("budget.steps is 0; give more")


@dataclass(frozen=True, kw_only=True)
class First:
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    run: Path


@dataclass(frozen=True, kw_only=True)
class Whole(First):
    budget: Section


def test_arguments_override_what_is_there() -> None:
    default = Whole(config=Path("c"), run=Path("r"), budget=Section(steps=3, kind="disjoint"))
    arguments = ["c", "--run", "r", "--budget.steps", "7"]
    given = parse_arguments(Whole, arguments, "try", default=default, underscores=True)
    assert given.budget == Section(steps=7, kind="disjoint")
    assert parse_first(First, arguments, "try") == First(config=Path("c"), run=Path("r"))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--budget.steps", "None"], Section(share=0.7)),
        (["--budget.widths", "8", "1"], Section(share=0.7, steps=3, widths=(8, 1))),
        (["--budget.betas", "0.9", "0.99"], Section(share=0.7, steps=3, betas=(0.9, 0.99))),
        (["--budget.widths", "None"], Section(share=0.7, steps=3)),
        (["--budget.folder", "a/b"], Section(share=0.7, steps=3, folder=Path("a/b"))),
        (["--budget.share", "1"], Section(share=1.0, steps=3)),
    ],
)
def test_values_that_may_be_missing(arguments: list[str], value: Section) -> None:
    default = Whole(config=Path("c"), run=Path("r"), budget=Section(steps=3, share=0.7))
    assert parse_arguments(Whole, ["c", "--run", "r", *arguments], "try", default=default).budget == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["c"], "--run PATH is missing;"),
        ([], "CONFIG, --run PATH are missing;"),
        (["--run", "r"], "CONFIG is missing;"),
        (["c", "--run"], "--run needs a value;"),
        (["c", "--run", "r", "--budget.stepz", "3"], "--budget.stepz is not an option (did you mean --budget.steps?);"),
        (["c", "--run", "r", "-n", "3"], "-n is not an option;"),
        (["c", "--run", "r", "d"], "'d' is one argument too many;"),
        (["c", "--run", "r", "d", ""], "'d', '' are arguments too many;"),
        (["", "--run", "r"], "CONFIG: '' is not a path; give one;"),
        (["c", "--run", "r", "--budget.widths"], "--budget.widths: needs a value;"),
        (["c", "--run", "r", "--budget.steps"], "--budget.steps needs a value;"),
        (["c", "--run", "r", "--budget.steps", "--budget.share", "1"], "--budget.steps needs a value;"),
        (["c", "--run", "r", "--budget.steps", "many"], "--budget.steps: 'many' is not a whole number;"),
        (["c", "--run", "r", "--budget.steps", "1.5"], "--budget.steps: '1.5' is not a whole number;"),
        (["c", "--run", "r", "--budget.share", "x"], "--budget.share: 'x' is not a number;"),
        (["c", "--run", "r", "--budget.widths", "8", "x"], "--budget.widths: 'x' is not a whole number;"),
        (["c", "--run", "r", "--budget.betas", "0.9"], "--budget.betas: '0.9' is not 2 values; give FLOAT FLOAT;"),
        (["c", "--run", "r", "--budget.mode", "fat"], "--budget.mode is 'fat'; give one of fast, slow;"),
        (["c", "--run", "r", "--budget.steps", "0"], "budget.steps is 0; give more"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_arguments(Whole, arguments, "try")
    text = str(refused.value)
    assert said in text
    assert text.endswith("see alphastream try --help")
    assert not set("\n│╭╰") & set(text)
    assert "Got errors" not in text


def test_what_comes_first_is_missed_first() -> None:
    with pytest.raises(UsageError, match=r"^--run PATH is missing; see alphastream try --help$"):
        parse_first(First, ["c", "--budget.steps", "3"], "try")


def test_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(Whole, ["--help"], "try")
    assert stop.value.code == 0
    lines = [" ".join(re.sub("[│╭╮╰╯─]", "", line).split()) for line in capsys.readouterr().out.splitlines()]
    shown = {"--budget.steps INT", "--budget.share FLOAT", "--budget.widths INT...", "--budget.betas FLOAT FLOAT"}
    assert shown <= {line.partition(" (")[0] for line in lines}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.4826123, "0.48261"), (1e-7, "1e-07"), (1234567, "1,234,567"), (("a", "b"), "a, b"), ("x", "x")],
)
def test_shown(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_tables_shorten_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold] :smile:" + "x" * 120
    print_table(("name", "rows"), [(name, "4,195,197,692")])
    lines = capsys.readouterr().out.splitlines()
    assert any(name in line and "4,195,197,692" in line for line in lines)
    print_table(("", ""), [("step", "3")])
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()] == [["step", "3"]]
