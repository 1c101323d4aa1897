"""Names that users give → the sources they stand for, in order, and what was left out."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote

from pyarrow import fs as arrow_fs

from pipeline.addresses import is_remote, open_filesystem, without_secrets
from pipeline.errors import InputError, cause_of
from pipeline.sample import SAMPLE_FILE
from pipeline.source.natural_order import in_natural_order
from pipeline.source.source import STANDARD_INPUT, Source, describe_source, remote_info, remote_source

LOG_ENDINGS = ("", ".tsv", ".csv", ".txt", ".log", ".gz", ".zst", ".bz2", ".xz")
"""Endings, in small letters or capitals, that make a file of a folder a log file; files named one by one may end in
anything."""
_SHOWN = 5
"""So many names of a list are shown."""


class Found(NamedTuple):
    """What names stand for."""

    sources: tuple[Source, ...]
    notices: tuple[str, ...]
    """What a user should know of the choice: files that were left out, an order that looks like a shell's."""


@dataclass
class _Listed:
    """Files of one folder or pattern."""

    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Named for people: with the reason if it is not the ending."""


def find_sources(names: Iterable[str | Path]) -> Found:
    """Every file that the names stand for, in the order given; those of a folder or pattern in natural order.

    A name is a file, a folder (its log files, see LOG_ENDINGS; not those of its folders), a pattern with `*`, `?` or
    `[`, a URI that pyarrow.fs understands (s3://, gs://, hdfs://, file://) of any of these, or `-` for standard input.
    Raises: InputError for a name that stands for nothing, an empty file, one that is named twice, or files of a folder
    or pattern whose names leave their order open (see in_natural_order).
    """
    sources: list[Source] = []
    notices: list[str] = []
    named: list[str] = []
    for name in map(str, names):
        found, notice = _expand(name)
        sources += found
        notices += [notice] if notice else []
        named += [source.address for source in found if source.address == _absolute(name)]
    if not sources:
        raise InputError("no source was named; give a log file, a folder or a pattern")
    if len(sources) > 1 and any(source.is_standard_input for source in sources):
        raise InputError("standard input (-) cannot be combined with other sources; name it alone")
    seen: set[str] = set()
    for source in sources:
        if source.name in seen:
            raise InputError(f"{source.address} is named twice; name each source once")
        seen.add(source.name)
        if source.size == 0:
            raise is_empty(source)
    notices += _notice_of_a_shells_order(named) if len(named) == len(sources) else []
    return Found(sources=tuple(sources), notices=tuple(notices))


def is_empty(source: Source) -> InputError:
    """The error for a source without a line."""
    return InputError(f"{source.address} is empty; remove it from the sources or fetch it again")


def _absolute(name: str) -> str:
    return without_secrets(name) if is_remote(name) else str(_local(name).absolute())


def _notice_of_a_shells_order(names: list[str]) -> list[str]:
    """A line if files were named in the order of the alphabet and their names say another."""
    if len(names) < 2 or names != sorted(names):
        return []
    try:
        natural = _ordered(names, where="")
    except InputError:
        return []
    if natural == names:
        return []
    later, earlier = next(pair for pair in zip(names, natural, strict=True) if pair[0] != pair[1])
    return [
        f"the files are taken in the order given, {_base(later)} before {_base(earlier)}, as a shell lists them; "
        "put a pattern in quotes ('day_*') to have them in the order of their numbers"
    ]


def _expand(name: str) -> tuple[list[Source], str | None]:
    """The sources of one name, and a line about what was left out."""
    if name == STANDARD_INPUT:
        return [Source(name=name, size=None, modified_ns=None)], None
    if not name:
        raise InputError("an empty name was given as a source; give a log file, a folder or a pattern")
    return _expand_remote(name) if is_remote(name) else _expand_local(name)


def _local(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} does not exist ({cause_of(error)}); check the path") from None


def _expand_local(name: str) -> tuple[list[Source], str | None]:
    path = _local(name)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"{name!r} cannot be read ({cause_of(error)}); check the path") from None
    if not exists and not path.is_symlink() and any(character in name for character in "*?["):
        listed = _matches(name, path)
        if not listed.names:
            raise InputError(f"{name} matches no file{_left(listed)}; check the pattern")
    elif is_folder:
        listed = _log_files(name, path)
        if not listed.names:
            raise InputError(
                f"{name} holds no log files ({_endings()}){_left(listed)}; name another folder or the files themselves"
            )
    else:
        return [describe_source(str(path.absolute()))], None
    return [describe_source(file) for file in _ordered(listed.names, where=name)], _notice(name, listed)


def _ordered(names: Sequence[str], *, where: str) -> list[str]:
    """Files in natural order; folders that they have in common take no part in it."""
    folders = [name.rpartition("/")[0].split("/") for name in names]
    common = next((i for i, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1), None)
    common = min(map(len, folders)) if common is None else common
    full = {"/".join(name.split("/")[common:]): name for name in names}
    return [full[name] for name in in_natural_order(full, where=where, endings=LOG_ENDINGS)]


def _log_files(name: str, folder: Path) -> _Listed:
    listed = _Listed()
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{name} cannot be read ({cause_of(error)}); check its permissions") from None
    for child in children:
        if child.is_file() and _is_log(child.name):
            listed.names.append(str(child.absolute()))
        elif not _is_hidden(child.name):
            listed.left_out.append(_described(child))
    return listed


def _matches(name: str, path: Path) -> _Listed:
    listed = _Listed()
    try:
        matches = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{name} cannot be matched ({cause_of(error)}); check the pattern") from None
    for match in matches:
        if match.is_file() and not (match.name.startswith(".") and not path.name.startswith(".")):
            listed.names.append(str(match.absolute()))
        elif not _is_hidden(match.name) and path.name != "**":
            listed.left_out.append(_described(match))
    return listed


def _described(path: Path) -> str:
    if path.is_dir():
        return f"{path.name} (a folder)"
    if path.is_symlink() and not path.exists():
        return f"{path.name} (a link to nothing)"
    return path.name if path.is_file() else f"{path.name} (no regular file)"


def _expand_remote(uri: str) -> tuple[list[Source], str | None]:
    address, mark, query = uri.partition("?")  # the query holds options of the file system
    is_pattern = "*" in address or "[" in address
    base, pattern = address.rsplit("/", 1) if is_pattern else (address.rstrip("/"), "*")
    filesystem, path = open_filesystem(base + mark + query)
    info = remote_info(uri, filesystem, path)
    if info.type == arrow_fs.FileType.File:
        return [remote_source(uri, info)], None
    listed, infos = _Listed(), {}
    for entry in remote_info(uri, filesystem, arrow_fs.FileSelector(path, allow_not_found=True)):
        if not fnmatch.fnmatchcase(entry.base_name, unquote(pattern)):
            continue
        is_file = entry.type == arrow_fs.FileType.File
        if is_file and (is_pattern or _is_log(entry.base_name)):
            infos[entry.base_name] = entry
        elif not _is_hidden(entry.base_name):
            listed.left_out.append(entry.base_name if is_file else f"{entry.base_name} (a folder)")
    shown = without_secrets(uri)
    if not infos:
        raise InputError(f"{shown} names no log file{_left(listed)}; check the address")
    ordered = in_natural_order(infos, where=shown, endings=LOG_ENDINGS)
    safe = "!$&'()+,;=:@~"
    sources = [remote_source(f"{base}/{quote(name, safe=safe)}{mark}{query}", infos[name]) for name in ordered]
    return sources, _notice(shown, listed)


def _is_log(name: str) -> bool:
    return not name.startswith((".", "_")) and PurePosixPath(name).suffix.lower() in LOG_ENDINGS


def _is_hidden(name: str) -> bool:
    """Whether nobody takes a file for a log: hidden, a mark such as _SUCCESS, or what `alphastream sample` says of its
    days; an ending of a log makes it worth a word all the same."""
    return name.startswith((".", "_", SAMPLE_FILE)) and PurePosixPath(name).suffix.lower() not in LOG_ENDINGS[1:]


def _base(name: str) -> str:
    return os.path.basename(name.rstrip("/"))  # noqa: PTH119 (URIs too)


def _notice(name: str, listed: _Listed) -> str | None:
    if not listed.left_out:
        return None
    left_out = _shortened(listed.left_out)
    return f"{name}: left out {left_out} (a folder's log files have {_endings()}); name what belongs to the log"


def _left(listed: _Listed) -> str:
    return f", and {_shortened(listed.left_out)} is left out" if listed.left_out else ""


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _endings() -> str:
    return ", ".join(ending or "no ending" for ending in LOG_ENDINGS)
