"""The content of a checkpoint, on however many ranks it was saved: whole tensors, or only rows of some."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.records.content import STATE, STATE_FILE
from trainer.records.serialization import deserialize
from trainer.records.sharded.rows import Take


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
    """Rows [start, stop) of a tensor, as a file holds them."""

    file: Path
    name: str
    start: int
    stop: int


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
        for name, pieces in self._sharded_of(file):
            tensors[name] = self._read(file, name, pieces, device)
        return tensors

    def _taken_of(self, file: str, whole: Path, device: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        stored = self._opened(whole)
        names = stored.keys()
        for name in names:
            shape = stored.get_slice(name).get_shape()
            if shape:
                tensors[name] = self._read(file, name, [_Piece(whole, name, 0, shape[0])], device)
            else:
                tensors[name] = stored.get_tensor(name).to(device)
        return tensors

    def _sharded_of(self, file: str) -> Iterator[tuple[str, list[_Piece]]]:
        for key, entry in self.sharded.items():
            if key.startswith(f"{file}/"):
                yield (
                    key.removeprefix(f"{file}/"),
                    [_Piece(self.path / held, key, start, stop) for held, (start, stop) in entry["ranges"].items()],
                )

    def _read(self, file: str, name: str, pieces: list[_Piece], device: str) -> Tensor:
        """The rows to take of the tensor that the pieces make up; no others are read."""
        one = self._opened(pieces[0].file).get_slice(pieces[0].name)
        shape = (max(piece.stop for piece in pieces), *one.get_shape()[1:])
        wanted = None if self.take is None else self.take(file, name, shape)
        if wanted is not None and wanted.rows != shape[0]:
            raise ValueError(
                f"{self.path}: {name} of {file} has {shape[0]} rows, and rows of {wanted.rows} are asked for"
            )
        start, stop = (0, shape[0]) if wanted is None else (wanted.start, wanted.stop)
        taken = torch.empty((stop - start, *shape[1:]), dtype=one[0:0].dtype, device=device)
        for piece in pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                stored = self._opened(piece.file).get_slice(piece.name)
                taken[first - start : last - start].copy_(stored[first - piece.start : last - piece.start])
        return taken

    def _opened(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = self.stack.enter_context(safe_open(file, framework="pt"))
        return self._open[file]
