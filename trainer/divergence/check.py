"""Whether the numbers of a step are finite: one pass over its gradients, and a flag that the device itself reads."""

# pyright: reportPrivateImportUsage=false
# (torch._foreach_norm is what torch's gradient clipping is built on; its stub is marked private)

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LIMIT = 2.0**63
"""A gradient of this size squares to 2¹²⁶, beside which a second moment of float32 has room for no other; what comes
near it is not finite for an optimizer, whose moments would be infinite from then on."""

LOOK_UPS = ("EmbeddingBackward", "_LookUpBackward")
"""Nodes of the graph whose gradient for a table is that of the rows that they looked up."""

CauseKind = Literal["input", "loss", "gradient"]


@dataclass(frozen=True, kw_only=True)
class WithheldCause:
    """Why a step was withheld."""

    kind: CauseKind
    what: str
    """In words, with the value."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found of one step: still on the device, and read when somebody asks."""

    sizes: Tensor
    """(K,) float32: the largest absolute value of the inputs, of the loss, and of each parameter's gradient; nan where
    one is nan. Of a table, a bound on it."""
    names: Sequence[str]
    """What each of `sizes` is of."""
    loss: Tensor
    """() mean loss, of several ranks over the rows of all."""

    @cached_property
    def withheld(self) -> Tensor:
        """() float32: 1 if any size is not below LIMIT, and 0 else; the `found_inf` of torch's gradient scaler."""
        return (~(self.sizes < LIMIT).all()).float()

    def cause_of(self, sizes: Sequence[float]) -> WithheldCause | None:
        """Why the step was withheld, by `sizes` on the host: the first that is too large; None if it was made."""
        for place, (size, name) in enumerate(zip(sizes, self.names, strict=True)):
            if not size < LIMIT:
                kind: CauseKind = "gradient" if place > 1 else "loss" if place else "input"
                value = "too large to be squared" if size < math.inf else f"{size:g}"
                return WithheldCause(kind=kind, what=f"{name} is {value}")
        return None


class NumberCheck:
    """Checks the steps of one model: where loss and gradient are finite, and below LIMIT, a step may be made.

    A table's gradient is as good as those of the rows that were looked up, and these are all it is made of: they are
    looked at as they come by in the backward pass, so that a dense table's gradient need not be read once more. An
    element of it is at most their largest times the number of look-ups. A table that the first step reads in any other
    way too is looked at as a whole.
    """

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        owners = {
            id(parameter): [owner for owner in model.modules() if any(own is parameter for own in _own(owner))]
            for _, parameter in named
        }
        self._named = named
        self._watch(
            [table for table in tables if all(isinstance(owner, nn.Embedding) for owner in owners[id(table.weight)])]
        )
        self._found: dict[int, Tensor] = {}
        self._seen_graph = False

    def _watch(self, tables: list[nn.Embedding]) -> None:
        """Of `tables` the looked up rows' gradients, and those of all other parameters."""
        self._tables = tables
        weights = {id(table.weight) for table in tables}
        self._parameters = [parameter for _, parameter in self._named if id(parameter) not in weights]
        others = [name for name, parameter in self._named if id(parameter) not in weights]
        looked_up = [next(name for name, one in self._named if one is table.weight) for table in tables]
        self.names = ["an input", "the loss", *(f"the gradient of {name}" for name in (*others, *looked_up))]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass whose backward pass will be checked; nothing stays on the model."""
        self._found = {}
        handles: list[RemovableHandle] = [
            table.register_forward_hook(self._hook(index)) for index, table in enumerate(self._tables)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int) -> Any:
        def on_gradient(gradient: Tensor) -> None:
            if not gradient.numel():
                return
            rows = max(gradient.numel() // max(gradient.shape[-1], 1), 1)
            size = _size(gradient) * rows
            before = self._found.get(index)
            self._found[index] = size if before is None else before + size

        def on_output(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(on_gradient)

        return on_output

    @torch.no_grad()
    def sizes(
        self,
        inputs: Sequence[Tensor],
        loss: Tensor,
        *,
        summed: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda numbers: numbers,
    ) -> Checked:
        """What is to be known of a step after its backward pass; nothing is waited for.

        `summed` adds up over ranks gradients in place, and the scalars it is given: a bound of what they are of.
        """
        if not self._seen_graph:
            self._seen_graph = True
            whole = read_otherwise(loss)
            kept = [index for index, table in enumerate(self._tables) if id(table.weight) not in whole]
            self._found = {place: self._found[index] for place, index in enumerate(kept) if index in self._found}
            self._watch([self._tables[index] for index in kept])
        zero = torch.zeros((), device=loss.device)
        floats = [value for value in inputs if value.is_floating_point() and value.numel()]
        given = torch.stack([_size(value) for value in floats]).amax() if floats else zero
        looked_up = [self._found.get(index, zero) for index in range(len(self._tables))]
        self._found = {}
        given, loss, *looked_up = summed([given, loss.detach(), *looked_up])
        gradients = [parameter.grad for parameter in self._parameters]
        dense = [gradient for gradient in gradients if gradient is not None and not gradient.is_sparse]
        norms = iter(_sizes([gradient.detach() for gradient in dense if gradient.numel()]))
        others = [
            zero
            if gradient is None or not (gradient._values() if gradient.is_sparse else gradient).numel()
            else _size(gradient._values())
            if gradient.is_sparse
            else next(norms)
            for gradient in gradients
        ]
        found = torch.stack([value.float() for value in (given, loss.abs(), *others, *looked_up)])
        return Checked(sizes=found, names=self.names, loss=loss)


def read_otherwise(loss: Tensor) -> set[int]:
    """`id` of every leaf that the graph of `loss` reads by anything but looking up its rows."""
    found: set[int] = set()
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is None:
                waiting.append(following)
            elif not node.name().startswith(LOOK_UPS):
                found.add(id(leaf))
    return found


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _sizes(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The size of each, in one launch where the device has one for many tensors."""
    if not tensors or tensors[0].device.type == "cpu":
        return [_size(tensor) for tensor in tensors]
    return torch._foreach_norm(tensors, math.inf)


def _size(values: Tensor) -> Tensor:
    """The largest absolute value of some, nan if one is."""
    if values.device.type == "cpu":  # whose infinity norm takes 16 times as long as this
        low, high = torch.aminmax(values.detach())
        return torch.maximum(-low, high)
    return torch.linalg.vector_norm(values.detach(), math.inf)
