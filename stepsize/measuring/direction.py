"""What one optimizer step changes: θ0 before it, d = θ1 − θ0 after it, row-sparse where a table is only looked up.

Letters: P parameters of one tensor, N look-ups, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from stepsize.errors import MeasurementError
from stepsize.losses import Loss
from stepsize.measuring.kept import Generators
from stepsize.measuring.passes import ForwardContext, forward_pass, modules_of
from stepsize.measuring.tables import EveryTableRead, Lookup, ReadAsAWholeError, Recorder, StandIn

Tables = Literal["rows", "dense"]


class Steps(Protocol):
    """What is needed of an optimizer: its parameter groups, each with `params` and `lr`."""

    param_groups: list[dict[str, Any]]


def optimizers_of(given: Steps | Sequence[Steps]) -> list[Steps]:
    """The optimizers as a list.

    Raises: MeasurementError for what has no parameter groups, and for groups without a rate.
    """
    found = list(given) if isinstance(given, Sequence) else [given]
    for one in found:
        groups = getattr(one, "param_groups", None)
        if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
            raise MeasurementError(
                f"optimizer: {type(one).__name__} has no param_groups; give the torch.optim.Optimizer that steps, or "
                "a list of them"
            )
        for index, group in enumerate(groups):
            if not isinstance(group.get("lr"), float | int | Tensor):
                raise MeasurementError(
                    f"optimizer: parameter group {index} of {type(one).__name__} has lr = {group.get('lr')!r}, so a "
                    "step length cannot be told from it; give it a rate (for Adafactor: relative_step=False, lr=1e-3)"
                )
    return found


def refuse_evaluating(optimizers: Sequence[Steps]) -> None:
    """Raises MeasurementError for a schedule-free optimizer whose weights are now those to evaluate, not to train."""
    for one in optimizers:
        modes = [getattr(one, "train_mode", True), *(group.get("train_mode", True) for group in one.param_groups)]
        if False in modes:
            raise MeasurementError(
                f"optimizer: {type(one).__name__} is in evaluation mode, so its weights are not those it steps from; "
                "call optimizer.train() before the step"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model is called with, and the generators' state the call begins from."""

    inputs: tuple[Any, ...]
    targets: Tensor
    generators: Generators


@dataclass(frozen=True, kw_only=True)
class Direction:
    """θ0 and d of one step, by parameter name; nothing here aliases the model.

    `values` and `differences` hold the parameters kept whole, `lookups[b]` the rows that batch b looks up in each
    table kept by rows. `groups` says which of the optimizer's parameter groups moves a parameter.
    """

    values: dict[str, Tensor]
    differences: dict[str, Tensor]
    lookups: tuple[dict[str, list[Lookup]], ...]
    buffers: dict[str, Tensor]
    groups: dict[str, int]
    optimized: dict[int, str]
    """What to call every parameter of the optimizer, the model's or not, by its id."""
    gradients: dict[str, Tensor]
    """B2's gradients as they lay in `.grad` after the step, where they were asked for and are still there."""

    def moved(self) -> tuple[list[Tensor], list[Tensor]]:
        """θ0 of all that is kept, and d in the same order."""
        calls = [call for tables in self.lookups for kept in tables.values() for call in kept]
        before = [*self.values.values(), *(call.before for call in calls)]
        change = [*self.differences.values(), *(call.difference for call in calls if call.difference is not None)]
        return before, change

    def tensors(self) -> list[Tensor]:
        """Every tensor held, for `record_stream`."""
        ids = [call.ids for tables in self.lookups for calls in tables.values() for call in calls]
        before, change = self.moved()
        return [*before, *change, *ids, *self.buffers.values(), *self.gradients.values()]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """θ0 of everything one step may move; `difference` completes it once the optimizer has stepped."""

    moving: dict[str, nn.Parameter]
    values: dict[str, Tensor]
    lookups: tuple[dict[str, list[Lookup]], ...]
    buffers: dict[str, Tensor]
    groups: dict[str, int]
    optimized: dict[int, str]
    still: dict[str, tuple[nn.Parameter, int]]
    """The model's other parameters with their versions: nothing may write to them before the step is measured."""

    def difference(self, *, gradients: bool = False) -> Direction:
        """θ0 with d = θ1 − θ0, in new memory of the size of what was kept; a copy of the gradients on request.

        Raises: MeasurementError where a parameter changed that no optimizer of the worker moves.
        """
        for name, (parameter, version) in self.still.items():
            if parameter._version != version:
                raise MeasurementError(
                    f"parameter {name!r} changed during the step, but no optimizer of the worker moves it; give the "
                    "worker every optimizer that steps here, and update averages or targets outside of the step"
                )
        with torch.no_grad():
            differences = {name: self.moving[name].detach() - value for name, value in self.values.items()}
            for tables in self.lookups:
                for name, calls in tables.items():
                    for call in calls:
                        call.difference = self.moving[name].detach().index_select(0, call.ids).sub_(call.before)
        return Direction(
            values=self.values,
            differences=differences,
            lookups=self.lookups,
            buffers=self.buffers,
            groups=self.groups,
            optimized=self.optimized,
            gradients=self._gradients() if gradients else {},
        )

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in self.moving.items() if name in self.values}
        return {
            name: gradient.detach().to_dense() if gradient.is_sparse else gradient.detach().clone()
            for name, gradient in found.items()
            if gradient is not None
        }


@dataclass
class Tracker:
    """Knows which parameters an optimizer moves and which of them are tables that a batch only looks rows up in.

    A table is the weight of an `nn.Embedding` or `nn.EmbeddingBag`. The first snapshot runs one whole forward pass to
    learn how often each table is looked up; a table that is also read as a whole (tied weights) or that has fewer rows
    than look-ups is cloned from then on. Later snapshots stop the pass at the last look-up.

    Rows are read by `parameter.detach().index_select(0, ids)`, before and after the step, and whole parameters by
    `clone` and subtraction. So a table whose rows are brought up to date only when they are read can be measured like
    any other: its parameter is a Tensor subclass whose `__torch_function__` does so before these functions.
    """

    model: nn.Module
    optimizers: Sequence[Steps]
    tables: Tables = "rows"
    context: ForwardContext = nullcontext
    loss: Loss | None = None
    """Its parameters, too, must hold still while a step is measured."""
    _lookups: dict[str, int] | None = field(default=None, init=False)
    """Look-ups of each table in one pass, once known; a table not listed is kept whole."""

    def snapshot(self, batches: Sequence[Batch]) -> Snapshot:
        """θ0 now: clones of what is kept whole, and of every table the rows that `batches` look up.

        Raises: MeasurementError where the optimizer moves no parameter of the model.
        """
        group_of = self._group_of()
        moving = self.moving()
        buffers = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            lookups = self._record_all(moving, batches, buffers)
            values = {
                name: parameter.detach().clone()
                for name, parameter in moving.items()
                if name not in (self._lookups or {})
            }
        return Snapshot(
            moving=moving,
            values=values,
            lookups=lookups,
            buffers=buffers,
            groups={name: group_of[id(parameter)] for name, parameter in moving.items()},
            optimized=self.optimized(),
            still={
                name: (parameter, parameter._version)
                for name, parameter in (*self.model.named_parameters(), *self._of_the_loss())
                if name not in moving and not parameter.is_inference()
            },
        )

    def moving(self) -> dict[str, nn.Parameter]:
        """The model's parameters that the optimizers move, by name; raises MeasurementError where there are none."""
        group_of = self._group_of()
        moving = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and id(parameter) in group_of
        }
        if not moving:
            raise MeasurementError(
                "the optimizer moves none of the model's parameters; give the worker the optimizer of this very model"
            )
        return moving

    def _group_of(self) -> dict[int, int]:
        return {
            id(parameter): index
            for index, group in enumerate(group for one in self.optimizers for group in one.param_groups)
            for parameter in group["params"]
        }

    def optimized(self) -> dict[int, str]:
        """What to call every parameter that the optimizers move, by its id."""
        groups = enumerate(group for one in self.optimizers for group in one.param_groups)
        called = {
            id(parameter): f"number {index} of parameter group {group_index}, of shape {tuple(parameter.shape)},"
            for group_index, group in groups
            for index, parameter in enumerate(group["params"])
        }
        names = {id(parameter): repr(name) for name, parameter in self.model.named_parameters()}
        return {key: names.get(key, description) for key, description in called.items()}

    def table_names(self) -> set[str]:
        """Names of the weights of every `nn.Embedding` and `nn.EmbeddingBag`, tied ones under their first name."""
        found = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        return {name for name, parameter in self.model.named_parameters() if id(parameter) in found}

    def _of_the_loss(self) -> list[tuple[str, nn.Parameter]]:
        modules = modules_of(getattr(self.loss, "function", self.loss))
        return [(f"{name} of the loss", value) for module in modules for name, value in module.named_parameters()]

    def refuse_moving(self, loss: Loss) -> None:
        """Raises MeasurementError for a loss whose own weights the optimizers move: they would be read at θ1."""
        moved = self.optimized()
        for module in modules_of(getattr(loss, "function", loss)):
            for name, parameter in module.named_parameters():
                if id(parameter) in moved:
                    raise MeasurementError(
                        f"loss: its parameter {name!r} is moved by the optimizer, and α* is that of the model's "
                        "weights; make it the model's last layer, so that the loss has none, or give it an optimizer "
                        "of its own that does not step here"
                    )

    def _record_all(
        self, moving: dict[str, nn.Parameter], batches: Sequence[Batch], buffers: dict[str, Tensor]
    ) -> tuple[dict[str, list[Lookup]], ...]:
        if self._lookups is None:
            self._lookups = self._learn(moving, batches[0], buffers)
        by_rows = {name: count for name, count in self._lookups.items() if name in moving}
        if not any(by_rows.values()):
            return tuple({name: [] for name in by_rows} for _ in batches)
        return tuple(self._record(moving, batch, buffers, by_rows) for batch in batches)

    def _learn(self, moving: dict[str, nn.Parameter], batch: Batch, buffers: dict[str, Tensor]) -> dict[str, int]:
        """Look-ups a pass of every table worth keeping by rows, from one whole pass."""
        candidates = self.table_names() & moving.keys() if self.tables == "rows" else set()
        while candidates:
            try:
                calls = self._record(moving, batch, buffers, dict.fromkeys(candidates))
            except ReadAsAWholeError as found:
                candidates = candidates - {found.table}
                continue
            ids = {name: sum(call.ids.numel() for call in calls[name]) for name in candidates}
            return {name: len(calls[name]) for name in candidates if ids[name] < moving[name].shape[0]}
        return {}

    def _record(
        self,
        moving: dict[str, nn.Parameter],
        batch: Batch,
        buffers: dict[str, Tensor],
        expected: dict[str, int] | dict[str, None],
    ) -> dict[str, list[Lookup]]:
        """Each table's look-ups in order; the pass ends at the last one where their number is known."""
        calls: dict[str, list[Lookup]] = {name: [] for name in expected}
        known = all(count is not None for count in expected.values())

        def stop_when_read() -> None:
            if known and all(len(calls[name]) == count for name, count in expected.items()):
                raise EveryTableRead

        stand_ins = {
            name: StandIn(name, moving[name], Recorder(moving[name].detach(), calls[name], stop_when_read))
            for name in expected
        }
        with suppress(EveryTableRead):
            forward_pass(
                self.model,
                batch.inputs,
                substitutes=stand_ins,
                buffers=buffers,
                generators=batch.generators,
                context=self.context,
            )
        return calls
