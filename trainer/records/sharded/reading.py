"""The content of a checkpoint, on however many ranks it was saved: whole tensors, or only rows of some."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import StorageError, cause_of
from trainer.records.content import STATE, STATE_FILE
from trainer.records.serialization import deserialize
from trainer.records.sharded.rows import RowRange, Take, all_rows

COPIED_ROWS = 1 << 14
"""Rows that are copied at a time; on their way to a device, those that lie apart are brought together on the host."""


def read_content(
    path: Path, device: torch.device | str, take: Take | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """`tensors`, on `device`, and `state`, on the CPU, of the undamaged checkpoint at `path`.

    Raises: OSError for what cannot be read; ValueError for rows to `take` of another tensor than was shown.
    """
    content = json.loads((path / STATE).read_text(encoding="utf-8"))
    with ExitStack() as stack:
        reader = _Reader(path=path, sharded=content.get("sharded", {}), take=take, stack=stack)
        tensors = {
            name: deserialize(form, reader.tensors_of(name, str(device))) for name, form in content["tensors"].items()
        }
        return tensors, deserialize(content["state"], reader.tensors_of(STATE_FILE, "cpu"))


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor, as a file holds them."""

    file: Path
    name: str
    rows: RowRange


@dataclass(kw_only=True)
class _Reader:
    path: Path
    sharded: dict[str, Any]
    take: Take | None
    stack: ExitStack
    _open: dict[Path, Any] = field(default_factory=dict, init=False)

    def tensors_of(self, file: str, device: str) -> dict[str, Tensor]:
        """By name, what there is to take of each tensor of the file."""
        whole = self.path / f"{file}.safetensors"
        tensors = load_file(whole, device=device) if self.take is None else self._taken_of(file, whole, device)
        for key, entry in self.sharded.items():
            if key.startswith(f"{file}/"):
                name = key.removeprefix(f"{file}/")
                pieces = [
                    _Piece(self.path / held, key, RowRange(start, stop, entry["shape"][0], *step))
                    for held, (start, stop, *step) in entry["ranges"].items()
                ]
                tensors[name] = self._read(file, name, entry["shape"], pieces, device)
        return tensors

    def _taken_of(self, file: str, whole: Path, device: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        stored = self._opened(whole)
        names = stored.keys()
        for name in names:
            shape = stored.get_slice(name).get_shape()
            if shape:
                tensors[name] = self._read(file, name, shape, [_Piece(whole, name, all_rows(shape[0]))], device)
            else:
                tensors[name] = stored.get_tensor(name).to(device)
        return tensors

    def _read(self, file: str, name: str, shape: list[int], pieces: list[_Piece], device: str) -> Tensor:
        """The rows to take of the tensor of `shape` that the pieces make up; files of others are not even opened."""
        rows = shape[0]
        wanted = (None if self.take is None else self.take(file, name, tuple(shape))) or all_rows(rows)
        if wanted.rows != rows:
            raise ValueError(f"{self.path}: {name} of {file} has {rows} rows, and rows of {wanted.rows} are asked for")
        sources = {each: common for each in pieces if (common := wanted.common(each.rows))}
        dtype = self._stored([*sources, *pieces][0])[0:0].dtype
        taken = torch.empty((len(wanted.numbers), *shape[1:]), dtype=dtype, device=device)
        for each, common in sources.items():
            for first in range(0, len(common), COPIED_ROWS):
                part = common[first : first + COPIED_ROWS]
                found = each.rows.places(part)
                # the library's slices are views of the file's pages: what is not copied never gets into memory
                stored = self._stored(each)[found.start : found.stop]
                taken[wanted.places(part)].copy_(stored[:: found.step])
        return taken

    def _stored(self, piece: _Piece) -> Any:
        return self._opened(piece.file).get_slice(piece.name)

    def _opened(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = self.stack.enter_context(safe_open(file, framework="pt"))
            except RuntimeError as error:  # the system refuses to map what is larger than its memory
                raise StorageError(f"{file} cannot be read on this machine ({cause_of(error)})") from error
        return self._open[file]
