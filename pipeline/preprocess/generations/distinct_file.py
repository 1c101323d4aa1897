"""DATA/distinct: the HyperLogLog registers of the whole folder, which those of the next generation are merged into.

A line of JSON, then the registers. The line has the beginnings of the sources too, for the manifest of a folder that
was never appended to has no place for them, and a digest, for such a manifest has none of this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encode import distinct_estimate
from pipeline.errors import FetchError
from pipeline.schema import LogFormat
from pipeline.shards import DistinctFile, Manifest, write_atomically

FOLDER = "distinct"
FIRST = "values.hll"
"""Its file in a folder that was never appended to."""


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """What such a file holds."""

    registers: np.ndarray
    """uint8 (S, M): M of each of the S sparse columns."""
    since: int
    """See DistinctFile."""
    beginnings: Sequence[Mapping[str, Any] | None]
    """Of the sources of generation 0 (see Generation.beginnings); () in the file of another."""


def write_distinct(out: Path, distinct: Distinct, name: str = FIRST) -> DistinctFile:
    """Keep the registers of the folder with the generation that is being listed, in DATA/distinct/`name`."""
    content = distinct.registers.tobytes()
    beginnings = list(distinct.beginnings)
    header = json.dumps({"beginnings": beginnings, "sha256": _digest(beginnings, content)})
    whole = header.encode() + b"\n" + content
    path = Path(FOLDER) / name
    (out / FOLDER).mkdir(exist_ok=True)
    write_atomically(out / path, whole)
    return DistinctFile(path=path.as_posix(), sha256=hashlib.sha256(whole).hexdigest(), since=distinct.since)


def read_distinct(manifest: Manifest) -> Distinct | None:
    """The registers that are kept of a folder; None if there are none, or others than the manifest speaks of.

    Raises: FetchError if the folder is remote and they cannot be fetched.
    """
    index = len(manifest.generations) - 1
    listed = manifest.distinct
    if index and listed is None:
        return None
    name = listed.path if listed else f"{FOLDER}/{FIRST}"
    folder = manifest.folder
    try:
        content = (folder / name).read_bytes() if isinstance(folder, Path) else folder.read(name)
    except FetchError:
        raise
    except OSError:
        return None
    if listed and hashlib.sha256(content).hexdigest() != listed.sha256:
        return None
    header, _, rest = content.partition(b"\n")
    try:
        values = json.loads(header)
        beginnings, intact = values["beginnings"], values["sha256"] == _digest(values["beginnings"], rest)
    except (ValueError, KeyError, TypeError):
        return None
    if not intact:
        return None
    registers = np.frombuffer(rest, np.uint8).reshape(len(manifest.format.sparse), -1)
    if listed is None and not _counts_the_same(manifest.format, registers, manifest.statistics):
        return None
    return Distinct(registers=registers, since=listed.since if listed else 0, beginnings=beginnings)


def remove_outdated(out: Path, listed: DistinctFile) -> None:
    """Remove the files of earlier generations, whose registers are part of those that are `listed`."""
    for path in (out / FOLDER).glob("*.hll"):
        if path.relative_to(out).as_posix() != listed.path:
            path.unlink(missing_ok=True)


def _counts_the_same(log_format: LogFormat, registers: np.ndarray, statistics: Mapping[str, Any]) -> bool:
    """Whether the registers are those that the statistics were made from: another log's are there by a mistake."""
    estimates = [distinct_estimate(registers_M) for registers_M in registers]
    return estimates == [statistics["columns"][name]["distinct"] for name in log_format.sparse]


def _digest(beginnings: Sequence[Any], content: bytes) -> str:
    return hashlib.sha256(json.dumps(beginnings).encode() + b"\n" + content).hexdigest()
