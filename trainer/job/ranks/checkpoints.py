"""Which rows of a checkpoint's tensors a rank has: of its tables, their moments, averages and snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from trainer.ranks import Ranks, RowsOfRank, held_rows
from trainer.records import CheckpointFile, RowRange, Shares

MOMENTS = "optimizer.state."
"""Begins the names, in a checkpoint's state, of what an optimizer keeps of its parameters; their number follows."""


class WantedRows:
    """Answers, for each tensor of a checkpoint, which rows of it this rank has; None: all, as every rank.

    Of a model without sharded tables, everything.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._held = {name: _range_of(place) for name, place in held_rows(model).items()}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        moved = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        self._moments = {str(index): name for index, name in enumerate(moved) if name in self._held}
        widths = {name: tuple(parameter.shape[1:]) for name, parameter in model.named_parameters()}
        self._widths = {name: widths[name] for name in self._held}

    def __call__(self, file: str, name: str, shape: tuple[int, ...]) -> RowRange | None:
        """`shape` of the whole tensor."""
        parameter = self._parameter_of(file, name)
        if parameter is None or tuple(shape[1:]) != self._widths[parameter] or not shape:
            return None
        held = self._held[parameter]
        return held if shape[0] == held.rows else None

    def having(self, file: CheckpointFile) -> dict[tuple[str, str], RowRange]:
        """What of `file`, as this rank has it, are rows."""
        found = {}
        for name, tensor in file.tensors.items():
            parameter = self._parameter_of(file.name, name)
            if parameter is not None and tensor.ndim and tuple(tensor.shape[1:]) == self._widths[parameter]:
                found[file.name, name] = self._held[parameter]
        return found

    def _parameter_of(self, file: str, name: str) -> str | None:
        """The sharded parameter that a tensor is, or goes with."""
        if file in ("model", "average"):
            return name if name in self._held else None
        if file == "snapshots":
            return next((one for one in self._held if name.endswith(f"/values/{one}")), None)
        if file == "state" and name.startswith(MOMENTS):
            return self._moments.get(name.removeprefix(MOMENTS).split(".", 1)[0])
        return None


def _range_of(place: RowsOfRank) -> RowRange:
    return RowRange(min(place.rank, place.rows), place.rows, place.rows, place.ranks)


def shares_of(files: Iterable[CheckpointFile], ranks: Ranks, wanted: WantedRows) -> Shares:
    """How `files`, as this rank has them, are its part of a checkpoint."""
    rows: dict[tuple[str, str], RowRange] = {}
    for file in files:
        rows |= wanted.having(file)
    return Shares(group=ranks.for_saves(), rows=rows)
