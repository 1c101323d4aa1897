"""What the runs of a study came to, one file a run, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import stepsize
from stepsize.suite import controlled, methods, training
from stepsize.suite.methods import METHODS
from stepsize.suite.problems import models, problem, rows
from stepsize.suite.problems.problem import Task
from stepsize.suite.problems.rows import FILES, SuiteError

COMMON: tuple[ModuleType, ...] = (rows, models, problem, methods, training)


@dataclass(frozen=True, kw_only=True, order=True)
class PlannedRun:
    """One run of a study."""

    task: str
    method: str
    rate: float
    """The rate, or the first guess."""
    seed: int

    @property
    def name(self) -> str:
        """For a file and for people."""
        return f"{self.method}-{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run came to."""

    run: PlannedRun
    record: dict[str, Any]
    """What `training.run` tells, and `wall_seconds`."""

    def best(self, seconds: float | None = None) -> dict[str, Any]:
        """The evaluation with the lowest validation loss, of those begun within `seconds` of processor time.

        A run that diverges counts with its best evaluation before; the one before training is always there, so its
        worst is the loss of untrained weights.
        """
        told = [evaluation for evaluation in self.record["evaluations"] if evaluation["test"] is not None]
        in_time = [evaluation for evaluation in told if seconds is None or evaluation["seconds"] <= seconds]
        assert in_time, self.run
        return in_time[-1]

    @property
    def validation(self) -> float:
        """Lowest validation loss of the run."""
        best = self.best()
        return best["validation"][best["weights"]]

    @property
    def test(self) -> float:
        """Test loss where validation is lowest."""
        return self.best()["test"]

    @property
    def seconds(self) -> float:
        """Processor seconds of its training."""
        return self.record["evaluations"][-1]["seconds"]


class RunStore:
    """The finished runs in a folder: `FOLDER/TASK/METHOD-RATE-seedSEED-DEFINITION.json`.

    A run counts if it was made with the same definition: the task's fields, the code that draws and trains it, its
    rows' file, torch's version, for peers that of their package, and for what measures the code of `stepsize`.
    Others are left where they are and not read.
    """

    def __init__(self, folder: Path, data: Path | None) -> None:
        self.folder, self.data = folder, data
        self._known: dict[PlannedRun, FinishedRun] = {}
        self._absent: set[PlannedRun] = set()

    def get(self, run: PlannedRun, known_task: Task) -> FinishedRun | None:
        """The run, if it is there.

        Raises: SuiteError where its file is damaged.
        """
        if run in self._known:
            return self._known[run]
        if run in self._absent:
            return None
        path = self._path(run, known_task)
        if not path.is_file():
            self._absent.add(run)
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            asked, found = asdict(run), record.pop("run")
        except (ValueError, KeyError, AttributeError):
            raise SuiteError(f"{path} is damaged; delete it, and the run is made again") from None
        if asked != found:
            raise SuiteError(f"{path} is the run {found}; delete it, and the right one is made")
        self._known[run] = FinishedRun(run=run, record=record)
        return self._known[run]

    def put(self, run: PlannedRun, known_task: Task, record: dict[str, Any]) -> None:
        """Keep the run: its file appears whole, and outlives the machine's stop."""
        path = self._path(run, known_task)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"run": asdict(run), **record}, allow_nan=False) + "\n"
        write_whole(path, text.encode())
        self._known[run] = FinishedRun(run=run, record=record)
        self._absent.discard(run)

    def _path(self, run: PlannedRun, known_task: Task) -> Path:
        return self.folder / run.task / f"{run.name}-{definition(known_task, run.method, self.data)}.json"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there with all of its bytes or as it was before, with nothing beside it.

    Raises: OSError that names it, where the disk is full or fails.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise


@cache
def _code(modules: tuple[ModuleType, ...]) -> str:
    return _digest(inspect.getsource(module) for module in modules)


@cache
def _measuring_code() -> str:
    """Of everything in `stepsize` beside the suite, and of how the suite uses it."""
    assert stepsize.__file__ is not None
    folder = Path(stepsize.__file__).parent
    files = sorted(path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] != "suite")
    return _digest([_code((controlled,)), *(path.read_text(encoding="utf-8") for path in files)])


@cache
def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


_DEFINITIONS: dict[tuple[str, str, Path | None], str] = {}


def definition(known_task: Task, method: str, data: Path | None) -> str:
    """Twelve characters that are others where the run would be another one."""
    how, what = METHODS[method], json.dumps(asdict(known_task), sort_keys=True)
    key = (what, method, data)
    if key not in _DEFINITIONS:
        file = FILES.get(known_task.source)
        parts = [what, _code(COMMON), torch.__version__]
        parts.append(_content(data / file) if file is not None and data is not None else "")
        parts.append(version("scikit-learn") if known_task.source in rows.NEEDS_SKLEARN else "")
        parts.append(version(how.distribution) if how.distribution is not None else "")
        parts.append(_measuring_code() if how.kind == "measured" else "")
        _DEFINITIONS[key] = _digest(parts)[:12]
    return _DEFINITIONS[key]
