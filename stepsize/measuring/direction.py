"""What one optimizer step changes: θ0 before it, d = θ1 − θ0 after it, row-sparse where a table is only looked up.

Letters: P parameters of one tensor, N look-ups, E embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stepsize.errors import MeasurementError
from stepsize.losses import Loss
from stepsize.measuring.kept import Generators, TensorsApart, own_copy
from stepsize.measuring.optimizers import Steps
from stepsize.measuring.passes import ForwardContext, forward_pass, loss_modules, modules_of_loss
from stepsize.measuring.survey import Survey
from stepsize.measuring.tables import (
    OVERFLOW,
    EveryTableRead,
    Kept,
    Lookup,
    ReadAsAWholeError,
    Recorder,
    StandIn,
    across,
    dense_gradient,
    way_of_keeping,
)

Tables = Literal["rows", "dense"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the model is called with, and the generators' state the call begins from."""

    inputs: tuple[Any, ...]
    targets: Tensor
    generators: Generators

    def copied(self) -> Batch:
        """The same in memory of its own, so that the caller's may be written to."""
        return replace(self, inputs=own_copy(self.inputs), targets=self.targets.detach().clone())


@dataclass(frozen=True, kw_only=True)
class Direction:
    """θ0 and d of one step, by parameter name; nothing here aliases the model.

    `values` and `differences` hold the parameters kept whole, `lookups[b]` the rows that batch b looks up in each
    table kept by rows. `groups` says which of the optimizer's parameter groups moves a parameter. Both θ0 and d are
    needed until the passes are through: the model's own parameters go on from θ1.
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
    survey: Survey
    """The model as it was when θ0 was kept."""
    constants: dict[str, Tensor]
    """Copies of parameters that no optimizer of the worker moves, but something else does between the steps."""
    apart: TensorsApart | None = None
    """Where the passes run beside training: copies of what else the model reads."""
    loss_apart: TensorsApart | None = None
    """Likewise of what the loss reads."""
    differing: dict[str, list[Tensor]] = field(default_factory=dict)
    """By table, whether each look-up of the passes so far was for other rows, where the host cannot see the ids."""

    def moved(self) -> tuple[list[Tensor], list[Tensor]]:
        """θ0 of all that is kept, and d in the same order."""
        calls = [call for tables in self.lookups for kept in tables.values() for call in kept]
        before = [*self.values.values(), *(call.before for call in calls)]
        change = [*self.differences.values(), *(call.difference for call in calls if call.difference is not None)]
        return before, change

    def tensors(self) -> list[Tensor]:
        """Every tensor held, for `record_stream`."""
        calls = [call for tables in self.lookups for found in tables.values() for call in found]
        ids = [tensor for call in calls for tensor in call.tensors()]
        before, change = self.moved()
        named = (self.buffers, self.gradients, self.constants)
        others = [tensor for found in named for tensor in found.values()]
        beside = [tensor for found in (self.apart, self.loss_apart) if found is not None for tensor in found.tensors()]
        return [*before, *change, *ids, *others, *beside]


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
    survey: Survey
    constants: dict[str, Tensor]
    tracker: Tracker

    def difference(self, *, gradients: bool = False, apart: bool = False) -> Direction:
        """θ0 with d = θ1 − θ0, in new memory of the size of what was kept; a copy of the gradients on request.

        With `apart`, also copies of whatever else training may write to while the passes run.

        Raises: MeasurementError where a parameter changed that no optimizer of the worker moves.
        """
        for name, (parameter, version) in self.still.items():
            if parameter._version != version:
                raise MeasurementError(
                    f"parameter {name!r} changed during the step, but no optimizer of the worker moves it; give the "
                    "worker every optimizer that steps here, and update averages or targets outside of the step"
                )
        with torch.no_grad():
            differences = dict(
                zip(self.values, _differences([self.moving[name] for name in self.values], self.values), strict=True)
            )
            for tables in self.lookups:
                for name, calls in tables.items():
                    for call in calls:
                        call.difference = call.read(self.moving[name].detach()).sub_(call.before)
        return Direction(
            values=self.values,
            differences=differences,
            lookups=self.lookups,
            buffers=self.buffers,
            groups=self.groups,
            optimized=self.optimized,
            gradients=self._gradients() if gradients else {},
            survey=self.survey,
            constants=self.constants,
            apart=TensorsApart.of(self.survey.modules) if apart else None,
            loss_apart=self.tracker.loss_apart(self.optimized) if apart else None,
        )

    def looking_up(self, batches: Sequence[Batch]) -> Snapshot:
        """The same, with the rows that `batches` look up of tables of several processes, which all of them call for."""
        held = {name: value for name, value in self.values.items() if across(self.moving[name]) is not None}
        if not held:
            return self
        with torch.no_grad():
            record = partial(self.tracker.record, self.survey, self.moving, held=held)
            lookups = tuple(record(batch, self.buffers, dict.fromkeys(held)) for batch in batches)
        others = {name: value for name, value in self.values.items() if name not in held}
        return replace(self, values=others, lookups=lookups)

    def reliance(self, *, apart: bool) -> Reliance:
        """What the measurement relies on, to be asked once its numbers are there."""
        there = ((name, self.still[name]) for name in self.survey.parameters if name in self.still)
        in_place = [entry for name, entry in there if name not in self.constants] if apart else []
        return Reliance(in_place=in_place, tracker=self.tracker)

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in self.moving.items() if name in self.values}
        return {
            name: dense_gradient(gradient.detach()) if gradient.is_sparse else gradient.detach().clone()
            for name, gradient in found.items()
            if gradient is not None
        }


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """What could not be known of a measurement while it was made; holds nothing of its θ0 and d."""

    in_place: list[tuple[nn.Parameter, int]]
    """Parameters that passes apart from training read where they lie, with their versions."""
    tracker: Tracker

    def broken(self, numbers: Mapping[str, list[float]]) -> bool:
        """Whether `numbers`, the quantities of `measure`, are void; what made them so is then seen to for the next.

        A parameter that was written to before the pass was through is copied from the next snapshot on, and a table
        that had not enough room for the different rows of a look-up gets more.
        """
        overflown = any(any(values) for name, values in numbers.items() if name.startswith(OVERFLOW))
        if overflown:
            self.tracker.learn_again()
        return overflown or any(parameter._version != version for parameter, version in self.in_place)


def _differences(now: list[Tensor], before: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """`now` less `before`, in one launch where the device has one for many tensors."""
    return torch._foreach_sub(now, list(before.values())) if now else ()  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class Tracker:
    """Knows which parameters an optimizer moves and which of them are tables that a batch only looks rows up in.

    A table is the weight of an `nn.Embedding` or `nn.EmbeddingBag`. The first snapshot runs one whole forward pass to
    learn how often each table is looked up. A table that is also read as a whole (tied weights) is cloned from then on.
    One that has fewer rows than a pass looks up keeps every different row once if the first pass had at most half as
    many of them as rows, with room for twice as many (how many there are, a device tells only who waits for it), and is
    cloned otherwise. Later snapshots stop the pass at the last look-up.

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
    _kept: dict[str, Kept] | None = field(default=None, init=False)
    """How each table is kept by rows, once known; a table not listed is kept whole."""
    _learned: tuple[tuple[nn.Module, bool], ...] = field(default=(), init=False)
    """The modules whose pass that was, and whether each was training."""
    _versions: dict[str, int] = field(default_factory=dict, init=False)
    """Of the parameters that no optimizer moves, at the last snapshot."""
    _restless: set[str] = field(default_factory=set, init=False)

    def snapshot(self, batches: Sequence[Batch], *, apart: bool = False) -> Snapshot:
        """θ0 now: clones of what is kept whole, and of every table the rows that `batches` look up.

        Without `batches` tables are kept whole, and one batch of any rows can be measured.
        With `apart` the passes will run while training goes on: parameters that no optimizer of the worker moves, but
        that have changed since the last snapshot, are cloned too.

        Raises: MeasurementError where the optimizer moves no parameter of the model.
        """
        survey, group_of = Survey.of(self.model), self._group_of()
        moving = self.moving(survey)
        with torch.no_grad():
            buffers = {name: buffer.clone() for name, buffer in survey.buffers.items()}
            by_rows = self._kept_by_rows(survey, moving, batches[0], buffers) if batches else {}
            values = {name: parameter.clone() for name, parameter in moving.items() if name not in by_rows}
            copies = {id(moving[name]): value for name, value in values.items()}
            lookups = tuple({name: [] for name in by_rows} for _ in batches or (None,))
            if any(kept.lookups for kept in by_rows.values()):
                lookups = tuple(
                    self.record(survey, moving, batch, buffers, by_rows, copies=copies) for batch in batches
                )
            still = {name: value for name, value in survey.parameters.items() if name not in moving}
            constants = {name: still[name].clone() for name in self._restless_among(still)} if apart else {}
        return Snapshot(
            moving=moving,
            values=values,
            lookups=lookups,
            buffers=buffers,
            groups={name: group_of[id(parameter)] for name, parameter in moving.items()},
            optimized=self.optimized(survey),
            still={
                name: (parameter, parameter._version)
                for name, parameter in (*still.items(), *self._of_the_loss())
                if not parameter.is_inference()
            },
            survey=survey,
            constants=constants,
            tracker=self,
        )

    def loss_apart(self, optimized: Collection[int]) -> TensorsApart:
        """Copies of all that the loss reads, but for parameters that the optimizers move, which it must not read."""
        return TensorsApart.of(loss_modules(self.loss), with_registered=True, leaving=optimized)

    def _restless_among(self, still: dict[str, nn.Parameter]) -> list[str]:
        """Names of those parameters that something else than the optimizers has been seen to change."""
        versions = {name: value._version for name, value in still.items() if not value.is_inference()}
        self._restless |= {name for name, version in versions.items() if self._versions.get(name, version) != version}
        self._versions = versions
        return [name for name in versions if name in self._restless]

    def moving(self, survey: Survey | None = None) -> dict[str, nn.Parameter]:
        """The model's parameters that the optimizers move, by name; raises MeasurementError where there are none."""
        group_of = self._group_of()
        moving = {
            name: parameter
            for name, parameter in (survey or Survey.of(self.model)).parameters.items()
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

    def optimized(self, survey: Survey | None = None) -> dict[int, str]:
        """What to call every parameter that the optimizers move, by its id."""
        survey = survey or Survey.of(self.model)
        names = {id(parameter): name for name, parameter in survey.parameters.items()}
        groups = enumerate(group for one in self.optimizers for group in one.param_groups)
        return {
            id(parameter): repr(names[id(parameter)])
            if id(parameter) in names
            else f"number {index} of parameter group {group_index}, of shape {tuple(parameter.shape)},"
            for group_index, group in groups
            for index, parameter in enumerate(group["params"])
        }

    def _of_the_loss(self) -> list[tuple[str, nn.Parameter]]:
        named = (each for module in modules_of_loss(self.loss) for each in module.named_parameters())
        return [(f"{name} of the loss", value) for name, value in named]

    def refuse_moving(self, loss: Loss) -> None:
        """Raises MeasurementError for a loss whose own weights the optimizers move: they would be read at θ1."""
        moved = self.optimized()
        for module in modules_of_loss(loss):
            for name, parameter in module.named_parameters():
                if id(parameter) in moved:
                    raise MeasurementError(
                        f"loss: its parameter {name!r} is moved by the optimizer, and α* is that of the model's "
                        "weights; make it the model's last layer, so that the loss has none, or give it an optimizer "
                        "of its own that does not step here"
                    )

    def learn_again(self) -> None:
        """Learn anew from the next snapshot how tables are looked up."""
        self._kept = None

    def _kept_by_rows(
        self, survey: Survey, moving: dict[str, nn.Parameter], batch: Batch, buffers: dict[str, Tensor]
    ) -> dict[str, Kept]:
        """How every table that is kept by rows is, learned in a whole pass whenever the modules are others."""
        modules = tuple((module, module.training) for _, module in survey.modules)
        if self._kept is None or modules != self._learned:
            self._kept = self._learn(survey, moving, batch, buffers)
            self._learned = modules
        return {name: kept for name, kept in self._kept.items() if name in moving}

    def _learn(
        self, survey: Survey, moving: dict[str, nn.Parameter], batch: Batch, buffers: dict[str, Tensor]
    ) -> dict[str, Kept]:
        """How every table worth keeping by rows is to be kept, from one whole pass."""
        candidates = survey.tables & moving.keys() if self.tables == "rows" else frozenset[str]()
        while candidates:
            try:
                calls = self.record(survey, moving, batch, buffers, dict.fromkeys(candidates))
            except ReadAsAWholeError as found:
                candidates -= {found.table}
                continue
            kept = {
                name: way_of_keeping(calls[name], rows=None if across(moving[name]) else moving[name].shape[0])
                for name in sorted(candidates)  # not in the order of a set, which is another one in every process
            }
            return {name: way for name, way in kept.items() if way is not None}
        return {}

    def record(
        self,
        survey: Survey,
        moving: Mapping[str, nn.Parameter],
        batch: Batch,
        buffers: dict[str, Tensor],
        expected: Mapping[str, Kept | None],
        *,
        copies: dict[int, Tensor] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> dict[str, list[Lookup]]:
        """Each table's look-ups in order; the pass ends at the last one where their number is known. Of
        tables of several processes, rows as they are in what this one had `held`, by default the present ones.
        """
        calls: dict[str, list[Lookup]] = {name: [] for name in expected}

        def stop_when_read() -> None:
            if all(kept is not None and len(calls[name]) == kept.lookups for name, kept in expected.items()):
                raise EveryTableRead

        stand_ins = {}
        for name, kept in expected.items():
            room = None if kept is None else kept.room
            weight = moving[name].detach() if held is None else held[name]
            recorder = Recorder(weight, calls[name], stop_when_read, room, across(moving[name]))
            stand_ins[name] = StandIn(name, moving[name], recorder)
        with suppress(EveryTableRead):
            forward_pass(
                self.model,
                batch.inputs,
                substitutes=stand_ins,
                buffers=buffers,
                generators=batch.generators,
                context=self.context,
                survey=survey,
                copies=copies,
            )
        return calls
