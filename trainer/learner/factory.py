"""Factories of the user's own: "module:name" or "file.py:name", found, imported and called."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any


def found_in(key: str, factory: str, folder: str | None, beside: Path | None = None) -> tuple[str, str]:
    """`factory` ("module:name" or "path/file.py:name") as one without a path, and the folder that it is found in.

    Looks in `folder` alone if it is given; else in the current directory, in `beside`, and for modules where Python
    looks (PYTHONPATH, installed packages). `key` names the setting in errors.
    Raises: ValueError if it is nowhere, or not of this form.
    """
    place, _, name = factory.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f'{key} is {factory!r}; give "module:name" or "path/file.py:name"')
    own = [Path(folder)] if folder is not None else [Path.cwd(), *([beside] if beside else [])]
    if place.endswith(".py"):
        for parent in own:
            file = (parent / place).absolute()
            if file.is_file():
                return f"{file.name}:{name}", str(file.parent)
        raise ValueError(f"{key} is {factory!r}, and there is no file {own[0] / place}; give the path of one")
    top = place.partition(".")[0]
    for entry in [*map(str, own), *(sys.path if folder is None else [])]:
        spec = PathFinder.find_spec(top, [entry or str(Path.cwd())])
        if spec is not None and spec.origin is not None:
            return factory, str(Path(entry).absolute())
    raise ValueError(
        f"{key} is {factory!r}, and there is no module {top!r} in {', '.join(map(str, own))}"
        + (" or on PYTHONPATH; " if folder is None else "; ")
        + "give its folder as factory_folder, or the path of its file"
    )


def source_of(factory: str, folder: str) -> Path:
    """The file that holds a factory as `found_in` returns it.

    Raises: ValueError if there is none.
    """
    place = factory.rpartition(":")[0]
    parts = [place] if place.endswith(".py") else place.split(".")
    stem = Path(folder, *parts)
    candidates = [stem] if place.endswith(".py") else [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]
    for file in candidates:
        if file.is_file():
            return file
    raise ValueError(f"{factory!r} is not in {folder} any more; give factory_folder, where it lies now")


def source_hash(factory: str, folder: str) -> str:
    """SHA-256 of the factory's file."""
    return hashlib.sha256(source_of(factory, folder).read_bytes()).hexdigest()


def made(key: str, factory: str, folder: str, *arguments: Any, options: Mapping[str, Any], **keywords: Any) -> Any:
    """What the factory, as `found_in` returns it, makes when it is called; `options` come from `key`'s section.

    Raises: ValueError if it does not import, is not there, cannot be called, or raises.
    """
    name, options_key = factory.rpartition(":")[2], f"{key.partition('.')[0]}.options"
    module = _module(key, factory, folder)
    if not hasattr(module, name):
        raise ValueError(f"{key} is {factory!r}, and {module.__file__} has no {name!r}; give the name of a function")
    make = getattr(module, name)
    if not callable(make):
        raise ValueError(f"{key} is {factory!r}, and {name!r} is a {type(make).__name__}; give a function or a class")
    if doubled := sorted(set(options) & set(keywords)):
        raise ValueError(f"{options_key}.{doubled[0]} is given to {factory!r} by the trainer; give it another name")
    try:
        return make(*arguments, **keywords, **options)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{key} = {factory!r} raised {_one_line(error)} when it was called; correct it, or {options_key}"
        ) from error


def _module(key: str, factory: str, folder: str) -> Any:
    file, place = source_of(factory, folder), factory.rpartition(":")[0]
    by_path = place.endswith(".py")
    name = f"factory_{hashlib.sha256(bytes(file)).hexdigest()[:16]}" if by_path else place
    if folder not in sys.path:  # also later, for what it imports when it is called
        sys.path.insert(0, folder)
    try:
        if not by_path:
            module = importlib.import_module(name)
            if Path(module.__file__ or "").resolve() != file.resolve():
                raise ValueError(f"another module of this name, {module.__file__}, is in its way; rename it")
            return module
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec
            assert spec.loader
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]
    except (Exception, SystemExit) as error:
        raise ValueError(f"{key} is {factory!r}, which does not import: {_one_line(error)}; correct {file}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
