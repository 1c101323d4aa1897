"""Measures α* around an optimizer step: inline on the CPU, on a side stream on CUDA that holds nothing up."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from stepsize.errors import MeasurementError
from stepsize.estimate import Estimate, Outcome
from stepsize.losses import Loss, as_loss
from stepsize.measuring import (
    Batch,
    ForwardContext,
    Generators,
    LastTrainingForward,
    Pending,
    Quantities,
    SelfCheck,
    Snapshot,
    Steps,
    Tables,
    Tracker,
    dropped,
    estimate_from,
    in_precision,
    lane_for,
    measure,
    operator_class,
    optimizers_of,
    plain_logits,
    refuse_evaluating,
    refuse_max_norm,
    refuse_scripted,
    refuse_sharded,
    refuse_without_parameters,
    row_forms,
    secant_noise,
    summarize,
    unwrapped,
)
from stepsize.options import MeasuringOptions, chosen

CHECKS = 10
"""Measurements after which a self-check that had nothing to compare, the steps having moved nothing, is given up."""
TakeRows = Callable[[tuple[Any, ...], Tensor, int], tuple[tuple[Any, ...], Tensor]]
"""`(inputs, targets, rows)` to the inputs and targets of the first `rows` rows."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One step under measurement: what was known before it. Of `snapshot` and `origin` (logits at θ0) one is there."""

    step: int
    learning_rates: tuple[float | Tensor, ...]
    batches: tuple[Batch, ...]
    snapshot: Snapshot | None
    origin: Tensor | None
    check: SelfCheck | None


class StepSizeWorker:
    """Measures how long each optimizer step should have been, in any training loop.

    >>> import torch
    >>> from torch import nn
    >>> from stepsize import StepSizeWorker
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> loss = nn.CrossEntropyLoss()
    >>> x, y = torch.randn(2, 64, 20), torch.randint(3, (2, 64))
    >>> worker = StepSizeWorker(model, optimizer, loss)
    >>> loss(model(x[0]), y[0]).backward()
    >>> with worker.around_step(x[1], y[1], step=0):
    ...     optimizer.step()
    >>> [estimate] = worker.poll(step=0)
    >>> estimate.outcome, estimate.rows
    (<Outcome.OK: 'ok'>, 64)

    B1, the probe batch given to `around_step`, must be independent of B2, the batch whose gradient the optimizer
    applies; only then is slope / curvature unbiased. `biased` and `hybrid` need B2 as `train_inputs`,
    `train_targets` as well, and cost a second pass.

    Cost: one forward-mode pass over B1, about a forward and a backward; the memory of one copy of θ0 and one of d,
    where an embedding table counts with the rows B1 looks up only. Training is bit for bit what it is without.

    CPU: measured inside `after_step`. CUDA: `before_step` and `after_step` copy what the step moves on the current
    stream, the rest runs on a side stream; the host never waits, at most one measurement is in flight, and a step
    that finds the worker busy is dropped and counted. B1's tensors must then not be overwritten in place before the
    estimate has arrived.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Steps | Sequence[Steps],
        loss: Loss | nn.Module,
        measuring: MeasuringOptions = MeasuringOptions(),  # noqa: B008 (frozen)
        *,
        take_rows: TakeRows | None = None,
        tables: Tables = "rows",
        max_age: int | None = None,
        forward_context: ForwardContext = nullcontext,
        self_check: bool = True,
        **options: Any,
    ) -> None:
        """A worker for `model(*inputs)` -> logits (R,), (R, 1) or (R, C) and the optimizers that move it.

        `measuring` says what to measure; its fields may also be given one by one, as in `diagnostics="full"`.
        With a `probe_fraction` rows are cut along each input's first dimension of B1's length, or by `take_rows`.
        `tables="dense"` clones embedding tables whole, for a model whose look-ups change from pass to pass.
        An estimate handed over more than `max_age` steps after its own is STALE.
        `forward_context` makes the context the model runs in, such as the autocast of the training.
        `self_check` holds the first measurement against a backward pass through the model (`SelfCheck`).

        Raises: MeasurementError for an unknown option, a loss without a closed form or with weights of its own that
        the optimizer moves, an optimizer without a rate or of another model, and a model that has no parameters or is
        scripted or sharded.
        """
        self.options = chosen(measuring, options)
        refuse_without_parameters(model)
        self.model = unwrapped(model)
        refuse_scripted(self.model)
        refuse_sharded(self.model)
        refuse_max_norm(self.model)
        self.loss = as_loss(loss)
        if self.options.curvature != "ggn":
            operator_class(self.options.curvature)
        self.max_age = max_age
        self.counts: Counter[str] = Counter()
        """Estimates handed over, by outcome."""
        self._take_rows = take_rows or first_rows
        self._optimizers = optimizers_of(optimizer)
        self._device = next(self.model.parameters()).device
        self._context = in_precision(self.options.precision, self._device, forward_context)
        tables = "dense" if self.options.needs_whole else tables
        self._tracker = Tracker(self.model, self._optimizers, tables=tables, context=self._context, loss=self.loss)
        self._tracker.refuse_moving(self.loss)
        self._tracker.moving()
        self._checks_left = CHECKS if self_check and self.options.method == "jvp" else 0
        self._lane = lane_for(self._device)
        self._last_forward = LastTrainingForward(self._device)
        self._hook = model.register_forward_pre_hook(self._last_forward) if self.options.needs_b2 else None
        self._open: _Measured | None = None
        self._in_flight: tuple[_Measured, Pending] | None = None
        self._finished: list[Estimate] = []

    @contextmanager
    def around_step(
        self,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        *,
        train_inputs: Tensor | tuple[Any, ...] | None = None,
        train_targets: Tensor | None = None,
        step: int,
    ) -> Iterator[bool]:
        """`before_step`, the body (the optimizer's step), `after_step`; yields whether the step is measured.

        An exception in the body leaves nothing behind.
        """
        measured = self.before_step(inputs, targets, train_inputs=train_inputs, train_targets=train_targets, step=step)
        try:
            yield measured
        except BaseException:
            self._open = None
            raise
        self.after_step()

    def before_step(
        self,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        *,
        train_inputs: Tensor | tuple[Any, ...] | None = None,
        train_targets: Tensor | None = None,
        step: int,
    ) -> bool:
        """Keep θ0 of everything the coming optimizer step may change, and B1 (`inputs`, `targets`).

        Returns False, and counts an estimate as DROPPED, where the one before is still being measured.

        Raises: MeasurementError where B2 is needed and not given, or the optimizer moves nothing of the model.
        """
        rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        refuse_evaluating(self._optimizers)
        self._collect()
        if self._in_flight is not None:
            # A rate that lives on the device can't be read here without waiting for it.
            rate = math.nan if isinstance(rates[0], Tensor) and rates[0].is_cuda else float(rates[0])
            self._finished.append(dropped(step=step, learning_rate=rate))
            return False
        batches = self._batches(inputs, targets, train_inputs, train_targets)
        secant = self.options.method == "secant"
        snapshot = None if secant else self._tracker.snapshot(batches)
        self._open = _Measured(
            step=step,
            learning_rates=tuple(rate.detach().clone() if isinstance(rate, Tensor) else float(rate) for rate in rates),
            batches=batches,
            snapshot=snapshot,
            origin=self._logits(batches[0]) if secant else None,
            check=self._self_check(batches[0], snapshot) if snapshot is not None and self._checks_left else None,
        )
        return True

    def after_step(self, logits: Tensor | None = None) -> None:
        """Measure along what the optimizer changed since `before_step`; nothing to do where that was dropped.

        `logits`, for the secant method alone, are the model's logits on B1 at θ1 where the caller has them anyway
        (B1 is the next batch trained on); it may then come as late as they do. Without them they are computed.
        """
        measured, self._open = self._open, None
        if measured is None:
            return
        pending = (
            self._submit_secant(measured, logits)
            if measured.snapshot is None
            else self._submit(measured, measured.snapshot)
        )
        self._in_flight = measured, pending
        self._collect()

    def check_next(self) -> None:
        """Hold the next measurement, too, against a backward pass; the secant, which is no derivative, has no check."""
        self._checks_left = CHECKS if self.options.method == "jvp" else 0

    def poll(self, *, step: int | None = None) -> list[Estimate]:
        """Estimates finished since the last call, oldest first, without waiting for any.

        `step` is the step the caller is at; each estimate's age is counted to it (0 where it is left out).
        """
        self._collect()
        finished, self._finished = self._finished, []
        handed = [self._aged(estimate, step) for estimate in finished]
        self.counts.update(estimate.outcome.value for estimate in handed)
        return handed

    def drain(self, *, step: int | None = None) -> list[Estimate]:
        """Wait for the measurement in flight, then `poll`: for the end of a run, and before a checkpoint."""
        if self._in_flight is not None:
            self._in_flight[1].wait()
        return self.poll(step=step)

    def state_dict(self) -> dict[str, Any]:
        """Counts by outcome, as JSON values. `drain` first: measurements in flight are not part of it."""
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.counts = Counter(state["counts"])

    def close(self) -> None:
        """Wait for the measurement in flight, forget it and take every hook off the model."""
        if self._in_flight is not None:
            self._in_flight[1].wait()
        if self._hook is not None:
            self._hook.remove()
        self._in_flight = self._open = None
        self._finished.clear()

    def _batches(
        self,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        train_inputs: Tensor | tuple[Any, ...] | None,
        train_targets: Tensor | None,
    ) -> tuple[Batch, ...]:
        """B1, under the dropout mask that the next forward pass will draw, and B2 under the one it was trained with."""
        if targets is None or not len(targets):
            raise MeasurementError(
                "before_step: B1 has no rows; give targets of at least one, zeros where the loss needs none"
            )
        now = Generators.capture(self._device)
        rows = math.ceil(self.options.probe_fraction * len(targets))
        b1_inputs, b1_targets = _as_tuple(inputs), targets
        if rows < len(targets):
            b1_inputs, b1_targets = self._take_rows(b1_inputs, targets, rows)
        b1 = Batch(inputs=b1_inputs, targets=b1_targets, generators=now)
        if train_inputs is None or train_targets is None:
            if self.options.needs_b2:
                raise MeasurementError(
                    "biased and hybrid estimates need B2; give train_inputs and train_targets to before_step"
                )
            return (b1,)
        if not self.options.needs_b2 and self.options.diagnostics == "none":
            return (b1,)
        trained_with = self._last_forward.generators or now
        return b1, Batch(inputs=_as_tuple(train_inputs), targets=train_targets, generators=trained_with)

    def _submit(self, measured: _Measured, snapshot: Snapshot) -> Pending:
        """Take the difference now, on the current stream, and leave the passes to the lane."""
        direction = snapshot.difference(gradients=self.options.diagnostics == "full")
        leaves = tree_leaves([(batch.inputs, batch.targets) for batch in measured.batches])
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def work() -> Quantities:
            return measure(
                self.model,
                self.loss,
                direction,
                measured.batches,
                self.options,
                context=self._context,
                check=measured.check,
            )

        pending = self._lane.submit(work, uses=[*direction.tensors(), *tensors])
        if measured.check is not None:
            self._checks_left = 0 if measured.check.told else self._checks_left - 1
        return pending

    def _self_check(self, batch: Batch, snapshot: Snapshot) -> SelfCheck:
        called = snapshot.optimized
        parameters = {
            id(parameter): (parameter, called[id(parameter)])
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        kept = {id(snapshot.moving[name]): value for name, value in snapshot.values.items()}
        return SelfCheck(self.model, self.loss, parameters, batch, kept=kept, context=self._context)

    def _logits(self, batch: Batch) -> Tensor:
        return plain_logits(self.model, batch.inputs, generators=batch.generators, context=self._context)

    def _submit_secant(self, measured: _Measured, logits: Tensor | None) -> Pending:
        """Jd as the logits' difference; the passes run on the current stream, between its other work."""
        z, batch = measured.origin, measured.batches[0]
        assert z is not None
        later = self._logits(batch) if logits is None else logits.detach()
        if later.shape != z.shape:
            raise MeasurementError(
                f"after_step: logits {tuple(later.shape)} where B1 has {tuple(z.shape)}; give those of B1's rows"
            )

        def work() -> Quantities:
            tangent = torch.where(later == z, 0, later - z)  # −∞ − (−∞) where logits are masked
            noise, live = secant_noise(z), self._tracker.optimized()
            return {"b1": summarize(row_forms(self.loss, z, tangent, batch.targets, noise=noise, live=live))}

        return self._lane.submit(work, uses=[z, later, batch.targets])

    def _collect(self) -> None:
        """Turn the measurement in flight into an estimate once it is done."""
        if self._in_flight is None or not self._in_flight[1].done():
            return
        (measured, pending), self._in_flight = self._in_flight, None
        rates = [float(rate) for rate in measured.learning_rates]
        self._finished.append(estimate_from(pending.read(), self.options, step=measured.step, learning_rates=rates))

    def _aged(self, estimate: Estimate, step: int | None) -> Estimate:
        age = 0 if step is None else step - estimate.step
        stale = self.max_age is not None and age > self.max_age and estimate.outcome is not Outcome.DROPPED
        return replace(estimate, age=age, outcome=Outcome.STALE if stale else estimate.outcome)


def first_rows(inputs: tuple[Any, ...], targets: Tensor, rows: int) -> tuple[tuple[Any, ...], Tensor]:
    """The first `rows` rows: each tensor cut along its first dimension of the targets' length, others left whole.

    Tensors in nested tuples, lists and mappings (also a tokenizer's BatchEncoding) count too.

    Raises: MeasurementError where no tensor has as many rows as the targets, so that nothing could be cut.
    """
    length, found = len(targets), False

    def cut(value: Any) -> Any:
        nonlocal found
        if isinstance(value, MutableMapping):
            fewer = copy.copy(value)
            for key, item in value.items():
                fewer[key] = tree_map(cut, item)
            return fewer
        if not isinstance(value, Tensor) or length not in value.shape:
            return value
        found = True
        return value.narrow(value.shape.index(length), 0, rows)

    fewer = tree_map(cut, inputs)
    if not found:
        raise MeasurementError(
            f"probe_fraction: no tensor in the inputs ({', '.join(type(value).__name__ for value in inputs)}) has the "
            f"targets' {length} rows, so none can be cut; give take_rows=function(inputs, targets, rows)"
        )
    return fewer, targets[:rows]


def _as_tuple(inputs: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
