"""Command-line arguments as dataclasses, usage errors as one line, and tables."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from rich import box
from rich.console import Console as Terminal
from rich.table import Table
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pipeline.errors import InputError

Options = TypeVar("Options")
Parsed = TypeVar("Parsed")


class UsageError(InputError):
    """Arguments that the verb does not take (exit code 2)."""


NOTHING = "None"
"""What stands for no value, as in Python: what an option is by default, given to override a file."""
_KINDS: dict[type, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("STR", "a text"),
    Path: ("PATH", "a path"),
}
"""What values are called in help, and in errors."""
_registry = ConstructorRegistry()


@_registry.primitive_rule
def _plain_values(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers, texts and paths, tuples of one of them where they may be missing, and each of these or nothing.

    tyro takes them too, but shows a type that may be missing as `{None}|INT`, and an error in it as one of each type.
    """
    options = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else (info.type,)
    chosen = [option for option in options if option is not type(None)]
    if len(chosen) != 1:
        return None
    optional, several = len(options) > 1, get_origin(chosen[0]) is tuple
    if several and not optional:
        return None
    kinds = set(get_args(chosen[0]) if several else chosen) - {Ellipsis}
    if len(kinds) != 1 or (kind := kinds.pop()) not in _KINDS:
        return None
    metavar, name = _KINDS[kind]
    count = None if not several or Ellipsis in get_args(chosen[0]) else len(get_args(chosen[0]))

    def read(texts: list[str]) -> Any:
        if optional and texts == [NOTHING]:
            return None
        if count is not None and len(texts) != count:
            raise ValueError(f"{' '.join(texts)!r} is not {count} values; give {' '.join([metavar] * count)}")
        values = []
        for text in texts:
            try:
                values.append(kind(text))
            except ValueError:
                raise ValueError(f"{text!r} is not {name}") from None
        return tuple(values) if several else values[0]

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=" ".join([metavar] * count) if count else f"{metavar}..." if several else metavar,
        instance_from_str=read,
        is_instance=lambda value: (value is None and optional) or isinstance(value, tuple if several else kind),
        str_from_instance=lambda value: list(map(str, value)) if isinstance(value, tuple) else [str(value)],
    )


def parse(
    options: type[Options],
    arguments: Sequence[str],
    verb: str,
    *,
    default: Options | None = None,
    underscores: bool = False,
) -> Options:
    """`arguments` as an instance of `options`; asking for help prints it and exits with 0.

    Raises: UsageError with one line for anything else that is wrong.
    """
    settings: dict[str, Any] = {
        "args": list(arguments),
        "prog": f"alphastream {verb}",
        "use_underscores": underscores,
        "config": (tyro.conf.FlagCreatePairsOff,),
        "registry": _registry,
    }
    if default is not None:
        settings["default"] = default
    return _captured(lambda: tyro.cli(options, **settings), verb)


def parse_first(options: type[Options], arguments: Sequence[str], verb: str) -> Options:
    """`options` from those of `arguments` that are theirs, others passed over.

    Raises: UsageError with one line for what is wrong with theirs.
    """
    prog = f"alphastream {verb}"
    return _captured(
        lambda: tyro.cli(options, args=arguments, prog=prog, return_unknown_args=True, registry=_registry), verb
    )[0]


def _captured(parse: Callable[[], Parsed], verb: str) -> Parsed:
    """What `parse` returns; a usage error that it prints in a frame becomes a UsageError of one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue(), verb)) from None


def _one_line(box: str, verb: str) -> str:
    """The message inside a framed usage error, with what to do."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line)[1:].rstrip() for line in box.splitlines()]
    parts: list[list[str]] = [[]]  # of the frame, between its rules
    for line in lines[1:]:
        if line.startswith("──"):
            parts.append([])
        else:
            parts[-1].append(line)
    text = " ".join(" ".join(parts[0]).split()) or "the arguments cannot be used"
    missing = text.startswith("Missing from")
    # An option stands four spaces in, its help eight; the last part is where to find help.
    named = [
        line.strip() for part in (parts[:1] if missing else parts[1:-1]) for line in part if re.match(r" {4}\S", line)
    ]
    return f"{_plain(text, named, missing=missing)}; see alphastream {verb} --help"


def _plain(text: str, named: list[str], *, missing: bool) -> str:
    """What tyro says, in the words of every other error here; `named` are the options that it shows."""
    if missing:
        return f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} missing"
    if found := re.match(r"Unrecognized options: (.*)", text):
        given = found[1].split(", ")
        unknown = next((each for each in given if re.match(r"--?[A-Za-z]", each)), None)
        if unknown is None:
            return f"{' '.join(given)} is one argument too many"
        near = f" (did you mean {named[0].split()[0]}?)" if named else ""
        return f"{unknown} is no option{near}"
    if found := re.match(r"Missing value for argument '([^']+)'", text):
        return f"{found[1]} needs a value"
    if found := re.match(r"invalid choice (.*) for argument '([^']+)'\. Expected one of \((.*)\)", text):
        return f"{found[2]} is {found[1]}; give one of {found[3].replace(chr(39), '')}"
    # "Error parsing --budget.steps: ..." and "Error parsing settings.budget: budget.steps is ..."
    text = re.sub(r"^Error parsing (--\S+: )", r"\1", text)
    return re.sub(r"^Error parsing [^\s-]\S*: ", "", text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """`rows` under `header`, first column to the left, the others to the right; without a header if all are empty."""
    table = Table(box=box.SIMPLE_HEAD if any(header) else None, show_header=any(header), pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # as wide as it is, also where output goes to a pipe: a shortened number would be no number
    terminal = Terminal(width=200, markup=False, emoji=False)
    with terminal.capture() as drawn:
        terminal.print(table)
    sys.stdout.write(drawn.get())  # by itself it would exit with 1 where nobody reads


def shown(value: object) -> str:
    """A value as a table shows it: numbers with five digits, or whole with thousands separated."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
