"""Command-line arguments as dataclasses, and usage errors as one line."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors as failures
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)
from tyro.constructors._struct_spec_dataclass import dataclass_rule

from pipeline.errors import InputError

Options = TypeVar("Options")


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
    """Numbers, texts and paths, tuples of one of them if they may be missing, and each of these or nothing.

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
        if several and not texts:
            raise ValueError("needs a value")
        if count is not None and len(texts) != count:
            raise ValueError(f"{' '.join(texts)!r} is not {count} values; give {' '.join([metavar] * count)}")
        values = []
        for text in texts:
            if kind is Path and not text:
                raise ValueError("'' is not a path; give one")
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


@_registry.struct_rule
def _help_in_paragraphs(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Options of a dataclass, their docstrings without the line ends that stand for the width of the source.

    tyro takes out those of text that is not indented, and keeps a docstring's.
    """
    spec = dataclass_rule(info)
    if spec is None:
        return None
    return replace(spec, fields=tuple(replace(each, helptext=_one_line(each.helptext)) for each in spec.fields))


def _one_line(text: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    def joined() -> str | None:
        found = text() if callable(text) else text
        return None if found is None else " ".join(found.split())

    return joined


def parse_arguments(
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
    settings: dict[str, Any] = {"use_underscores": underscores, "config": (tyro.conf.FlagCreatePairsOff,)}
    if default is not None:
        settings["default"] = default
    return _parsed(options, arguments, verb, **settings)


def parse_first(options: type[Options], arguments: Sequence[str], verb: str) -> Options:
    """`options` from those of `arguments` that are theirs, others passed over.

    Raises: UsageError with one line for what is wrong with theirs.
    """
    return _parsed(options, arguments, verb, return_unknown_args=True)[0]


def _parsed(options: type, arguments: Sequence[str], verb: str, **settings: Any) -> Any:
    def refuse(failure: failures.ParseErrorEvent) -> None:
        names = option_names(options, underscores=settings.get("use_underscores", False))
        raise UsageError(f"{_in_words(failure, names)}; see alphastream {verb} --help")

    with failures.on_parse_error(refuse):
        return tyro.cli(options, args=list(arguments), prog=f"alphastream {verb}", registry=_registry, **settings)


def option_names(options: type, *, underscores: bool, prefix: str = "") -> list[str]:
    """`--section.key` and so on, of every option of a dataclass; settings stand under their sections' names."""
    names: list[str] = []
    for name, kind in get_type_hints(options).items():
        inner = "" if name == "settings" else f"{prefix}{name}."
        if is_dataclass(kind):
            names += option_names(cast(type, kind), underscores=underscores, prefix=inner)
        else:
            names.append(f"--{prefix}{name if underscores else name.replace('_', '-')}")
    return names


def _in_words(failure: failures.ParseErrorEvent, names: Sequence[str]) -> str:
    """What tyro found wrong, in the words of every other error here."""
    match failure:
        case failures.MissingArgs():
            missing = [_name(each.arg, with_value=True) for each in failure.missing_arguments]
            return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        case failures.UnrecognizedArgs():
            unknown = next((each for each in failure.tokens if re.match(r"--?[^\W\d]", each)), None)
            if unknown is None:
                many = "is one argument" if len(failure.tokens) == 1 else "are arguments"
                return f"{', '.join(map(repr, failure.tokens))} {many} too many"
            near = difflib.get_close_matches(unknown.partition("=")[0], names, n=1)
            return f"{unknown} is not an option{f' (did you mean {near[0]}?)' if near else ''}"
        case failures.BadValue():
            return f"{_name(failure.argument)} needs a value"
        case failures.InvalidChoice():
            return f"{_name(failure.argument)} is {failure.value!r}; give one of {', '.join(failure.choices)}"
        case failures.InstantiationFailure():
            name = "" if failure.argument is None else f"{_name(failure.argument)}: "
            return name + " ".join(failure.message.split())
    return "the arguments cannot be used"


def _name(argument: Any, *, with_value: bool = False) -> str:
    """`--run`, or `--run PATH`; the placeholder of what has no name."""
    value = argument.lowered.metavar or "a value"
    if argument.is_positional():
        return value
    return f"{argument.lowered.name_or_flags[-1]} {value}" if with_value else argument.lowered.name_or_flags[-1]
