"""Measures α* around an optimizer step: inline on the CPU, on a side stream on CUDA that holds nothing up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stepsize.errors import MeasurementError
from stepsize.estimate import Estimate
from stepsize.losses import Loss, as_loss
from stepsize.measuring import (
    Batch,
    ForwardContext,
    Gather,
    Inline,
    Lane,
    LastTrainingForward,
    Pending,
    Quantities,
    SelfCheck,
    Snapshot,
    Steps,
    Tables,
    Tracker,
    coarsest_eps,
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
    secant_share,
    secant_summary,
    unwrapped,
)
from stepsize.options import MeasuringOptions, chosen
from stepsize.worker.across import across_of
from stepsize.worker.batches import ProbeBatches, TakeRows, first_rows
from stepsize.worker.group_rates import GroupRates
from stepsize.worker.measurement_queue import MakeEstimate, MeasurementQueue, refuse_delay
from stepsize.worker.self_checks import SelfChecks
from stepsize.worker.stored_estimates import aged, restored, stored
from stepsize.worker.void_step import is_void, void_step


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One step under measurement: what was known before it. Of `snapshot` and `origin` (logits at θ0) one is there."""

    step: int
    rates: GroupRates
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
    stream, and B1 too; the rest runs on a side stream and reads nothing that training writes to. When the estimate has
    arrived depends on the clock, so there are two ways of handing over:

    Without a `delay` estimates are handed over as they arrive: the host never waits, at most one measurement is in
    flight, and a step that finds the worker busy is dropped and counted. With `delay=k` the estimate of step s is
    handed over by the `poll` of step s + k, no earlier and no later, so that what is done with it does not depend on
    the clock: the host waits for it only if it is late, up to k + 1 measurements are in flight, first in first out,
    and none is dropped. Each of them holds on to its θ0, d and B1 on the device until the side stream is through with
    it, so that is k + 1 times the memory above at worst, where the side stream falls that far behind.
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
        delay: int | None = None,
        lane: Lane | None = None,
        forward_context: ForwardContext = nullcontext,
        self_check: bool = True,
        gather: Gather | None = None,
        **options: Any,
    ) -> None:
        """A worker for `model(*inputs)` -> logits (R,), (R, 1) or (R, C) and the optimizers that move it.

        `measuring` says what to measure; its fields may also be given one by one, as in `diagnostics="full"`.
        With a `probe_fraction` rows are cut along each input's first dimension of B1's length, or by `take_rows`.
        `tables="dense"` clones embedding tables whole, for a model whose look-ups change from pass to pass.
        An estimate handed over more than `max_age` steps after its own is STALE.
        `delay` is the number of steps after its own at which an estimate is handed over; None: as it arrives.
        `lane` runs the measurements, by default a side stream on CUDA and the calling thread elsewhere.
        `forward_context` makes the context the model runs in, such as the autocast of the training.
        `self_check` holds the first measurement against a backward pass through the model (`SelfCheck`).
        `gather` is given where each of several processes has a share of the batches: all measure the same steps and
        come to the same estimates, of all rows together. They need a delay, and there is no self-check.

        Raises: MeasurementError for an unknown option, a delay that is negative or longer than `max_age`, a loss
        without a closed form or with weights of its own that the optimizer moves, an optimizer without a rate or of
        another model, and a model that has no parameters or is scripted or sharded.
        """
        self.options = chosen(measuring, options)
        refuse_delay(delay, max_age)
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
        self._optimizers = optimizers_of(optimizer)
        self._device = next(self.model.parameters()).device
        self._context = in_precision(self.options.precision, self._device, forward_context)
        tables = "dense" if self.options.needs_whole else tables
        self._tracker = Tracker(self.model, self._optimizers, tables=tables, context=self._context, loss=self.loss)
        self._tracker.refuse_moving(self.loss)
        self._tracker.moving()
        self._across = across_of(gather, self.options, delay)
        self._checks = SelfChecks(due=self_check, possible=self._across is None and self.options.method == "jvp")
        self._lane = lane or lane_for(self._device)
        self._apart = not isinstance(self._lane, Inline)
        last_forward = LastTrainingForward(self._device)
        self._hook = model.register_forward_pre_hook(last_forward) if self.options.needs_b2 else None
        self._batches = ProbeBatches(
            options=self.options,
            take_rows=take_rows or first_rows,
            device=self._device,
            last_forward=last_forward,
            shared=gather is not None,
        )
        self._open: _Measured | None = None
        self._queue = MeasurementQueue(delay, on_time=gather is not None)

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
        rows: int | None = None,
    ) -> bool:
        """Keep θ0 of everything the coming optimizer step may change, and B1 (`inputs`, `targets`), of it the first
        `rows` (by default `probe_fraction`).

        Without a delay it returns False, and an estimate is DROPPED, where the one before is still being measured.
        With one it returns True, and waits for the oldest measurement where delay + 1 are in flight.

        Raises: MeasurementError where B2 is needed and not given, or the optimizer moves nothing of the model.
        """
        rates = GroupRates.now(self._optimizers)
        refuse_evaluating(self._optimizers)
        if not self._queue.make_room():
            self._drop(step, rates)
            return False
        batches = self._batches(inputs, targets, train_inputs, train_targets, rows)
        if self._apart:
            batches = tuple(batch.copied() for batch in batches)
        secant = self.options.method == "secant"
        snapshot = None if secant else self._tracker.snapshot(batches, apart=self._apart)
        whole = self.model, self.loss, self._optimizers
        self._open = _Measured(
            step=step,
            rates=rates,
            batches=batches,
            snapshot=snapshot,
            origin=self._logits(batches[0]) if secant else None,
            check=snapshot and self._checks.begin(*whole, batches[0], snapshot, context=self._context),
        )
        return True

    def after_step(self, logits: Tensor | None = None, *, void: Tensor | None = None) -> None:
        """Measure along what the optimizer changed since `before_step`; nothing to do where that was dropped.

        `void`, a scalar on the model's device, is not 0 where the step was not made: its estimate is DROPPED, not FLAT.
        `logits`, for the secant alone, are the model's logits on B1 at θ1 where the caller has them anyway; it may then
        come as late as they do. Without them they are computed.
        """
        measured, self._open = self._open, None
        if measured is None:
            return
        if (snapshot := measured.snapshot) is None:
            pending = self._submit_secant(measured, logits, void_step(void))
        else:
            pending = self._submit(measured, snapshot, self.options, void_step(void))
        self._queue.put(measured.step, pending, self._estimate_of(measured, self.options))

    def measure_since(
        self, snapshot: Snapshot, batches: tuple[Batch, ...], options: MeasuringOptions, *, horizon: int, step: int
    ) -> bool:
        """What `Horizon.measure` does, with the displacement since `snapshot`, `step` being the last of the steps."""
        refuse_evaluating(self._optimizers)
        rates = GroupRates.now(self._optimizers)
        if not self._queue.make_room():
            return False
        snapshot = snapshot.looking_up(batches)
        measured = _Measured(step=step, rates=rates, batches=batches, snapshot=snapshot, origin=None, check=None)
        estimate_of = self._estimate_of(measured, options, horizon=horizon)
        self._queue.put(step, self._submit(measured, snapshot, options, {}), estimate_of)
        return True

    def _estimate_of(self, measured: _Measured, options: MeasuringOptions, *, horizon: int = 1) -> MakeEstimate:
        step, rates = measured.step, measured.rates  # not θ0, which the queue need not hold
        reliance = measured.snapshot.reliance(apart=self._apart) if measured.snapshot is not None else None

        def make_estimate(numbers: dict[str, list[float]]) -> Estimate:
            known = rates.read(numbers)
            broken = reliance is not None and reliance.broken(numbers)
            if self._across is not None:
                numbers, broken = self._across.merge(numbers, options, broken=broken)
            if is_void(numbers) or broken:
                return dropped(step=step, learning_rate=known[0], horizon=horizon)
            return estimate_from(numbers, options, step=step, learning_rates=known, horizon=horizon)

        return make_estimate

    def check_next(self) -> None:
        """Hold the next measurement, too, against a backward pass; the secant, which is no derivative, has no check."""
        self._checks.renew()

    def poll(self, *, step: int | None = None) -> list[Estimate]:
        """Estimates to be handed over at `step`, the step the caller is at, oldest first.

        Without a delay: those finished since the last call; nothing is waited for. With one: those of the steps up to
        `step` - delay that have not been handed over, also where steps between were not polled at or not measured;
        the host waits for the ones that are late. Each estimate's age is counted to `step` (0 where it is left out).

        Raises: MeasurementError where there is a delay and no `step`.
        """
        if step is None and self._queue.delay is not None:
            raise MeasurementError(
                f"poll: with a delay of {self._queue.delay} steps estimates are handed over at a step; give step="
            )
        return self._handed_over(self._queue.take(step), step)

    def drain(self, *, step: int | None = None) -> list[Estimate]:
        """Wait for what is in flight, then `poll`. With a delay nothing is handed over before it is due."""
        self._queue.wait()
        return self.poll(step=step)

    def flush(self, *, step: int | None = None) -> list[Estimate]:
        """Wait for what is in flight and hand all of it over, due or not: at the end, when no step is left to poll at.

        `step` is the last step taken, to which ages are counted. Nothing of it is in a later `state_dict`.
        """
        return self._handed_over(self._queue.take_all(), step)

    def state_dict(self) -> dict[str, Any]:
        """Counts, and estimates not handed over with their due steps, as JSON values; waits for what is in flight."""
        return {"counts": dict(self.counts), "undelivered": stored(self._queue.undelivered())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; estimates in it keep the step at which they are due, whatever the delay here.

        States of earlier versions have counts alone.
        """
        self.counts = Counter(state["counts"])
        self._queue.restore(restored(state.get("undelivered", ())))

    def close(self) -> None:
        """Wait for what is in flight, forget it and take every hook off the model."""
        self._queue.clear()
        if self._hook is not None:
            self._hook.remove()
        self._open = None

    def _drop(self, step: int, rates: GroupRates) -> None:
        """Put in that `step` isn't measured, at once if its rate is a float, else when the device has told its rate."""

        def make_estimate(numbers: dict[str, list[float]]) -> Estimate:
            return dropped(step=step, learning_rate=rates.read(numbers)[0])

        if not rates.tensors:
            self._queue.put_finished(make_estimate({}))
            return
        pending = self._lane.submit(rates.quantities, uses=rates.tensors)
        self._queue.put(step, pending, make_estimate, occupies=False)

    def _handed_over(self, estimates: list[Estimate], step: int | None) -> list[Estimate]:
        handed = [aged(estimate, step, max_age=self.max_age) for estimate in estimates]
        self.counts.update(estimate.outcome.value for estimate in handed)
        return handed

    def _submit(self, measured: _Measured, snapshot: Snapshot, options: MeasuringOptions, void: Quantities) -> Pending:
        """Take the difference now, on the current stream, and leave the passes to the lane."""
        direction = snapshot.difference(gradients=options.diagnostics == "full", apart=self._apart)
        if measured.check is not None:
            measured.check.after_step()
        leaves = tree_leaves([(batch.inputs, batch.targets) for batch in measured.batches])
        tensors = [*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *void.values()]

        def work() -> Quantities:
            found = measure(
                self.model,
                self.loss,
                direction,
                measured.batches,
                options,
                context=self._context,
                check=measured.check,
                shared=self._across is not None,
            )
            return found | measured.rates.quantities() | void

        pending = self._lane.submit(work, uses=[*direction.tensors(), *tensors, *measured.rates.tensors])
        if measured.check is not None:
            self._checks.compared(measured.check)
        return pending

    def _logits(self, batch: Batch) -> Tensor:
        return plain_logits(self.model, batch.inputs, generators=batch.generators, context=self._context)

    def _submit_secant(self, measured: _Measured, logits: Tensor | None, void: Quantities) -> Pending:
        """Jd as the logits' difference; the passes run on the current stream, between its other work."""
        z, batch = measured.origin, measured.batches[0]
        assert z is not None
        later = self._logits(batch) if logits is None else logits.detach()
        eps = coarsest_eps(z, self._context)
        if later.shape != z.shape:
            raise MeasurementError(
                f"after_step: logits {tuple(later.shape)} where B1 has {tuple(z.shape)}; give those of B1's rows"
            )
        live = self._tracker.optimized()
        loss_apart = self._tracker.loss_apart(live) if self._apart else None
        told = secant_summary if self._across is None else secant_share

        def work() -> Quantities:
            found = {"b1": told(self.loss, z, later, batch.targets, eps=eps, live=live, apart=loss_apart)}
            return found | measured.rates.quantities() | void

        beside = [*(loss_apart.tensors() if loss_apart is not None else ()), *void.values()]
        return self._lane.submit(work, uses=[z, later, batch.targets, *beside, *measured.rates.tensors])
