"""Measures α_K: how long the displacement over the last K steps should have been, from a snapshot K steps old."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from stepsize.errors import MeasurementError
from stepsize.measuring import Batch, Snapshot, Tracker, refuse_evaluating
from stepsize.options import MeasuringOptions
from stepsize.policies import HorizonPlan
from stepsize.worker.worker import StepSizeWorker


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """θ of one moment, and the probe rows if they were known then."""

    snapshot: Snapshot
    batches: tuple[Batch, ...]

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is held because of it."""
        calls = [call for tables in self.snapshot.lookups for found in tables.values() for call in found]
        for named in (self.snapshot.values, self.snapshot.buffers, self.snapshot.constants):
            yield from named.values()
        for call in calls:
            yield call.before
            yield from call.tensors()
        for batch in self.batches:
            yield from (leaf for leaf in tree_leaves((batch.inputs, batch.targets)) if isinstance(leaf, Tensor))


class Horizon:
    """Measures the steps since a snapshot at once, beside whatever else its worker measures.

    >>> import torch
    >>> from torch import nn
    >>> from stepsize import Horizon, StepSizeWorker
    >>> _ = torch.manual_seed(0)
    >>> model, loss = nn.Linear(20, 3), nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.randn(9, 64, 20), torch.randint(3, (9, 64))
    >>> worker = StepSizeWorker(model, optimizer, loss)
    >>> horizon = Horizon(worker)
    >>> horizon.keep(step=0)
    >>> for step in range(8):
    ...     optimizer.zero_grad()
    ...     loss(model(x[step]), y[step]).backward()
    ...     optimizer.step()
    >>> horizon.measure(x[8], y[8], step=8)
    True
    >>> [estimate] = worker.poll(step=8)
    >>> estimate.horizon, estimate.step
    (8, 7)

    With d = θ_t − θ_{t−K}, slope s = dᵀg and curvature q = dᵀGd at θ_{t−K} on rows not trained on in between, α_K is
    −s/q. In the quadratic model the K steps gained L(θ_{t−K}) − L(θ_t) = (α_K − ½)·q: at ½ they gained nothing, at 1
    their sum landed at the minimum along it. Cost and error bar are those of a single step's α*.

    Memory: each snapshot holds a copy of every parameter that the worker's optimizers move, and of the buffers. Where
    the probe rows are given to `keep` already, an embedding table counts with the rows they look up only; without
    them it is kept whole. `bytes` says how much that is, and there are at most `most` snapshots.
    """

    def __init__(self, worker: StepSizeWorker, *, most: int = 3) -> None:
        """Measures `worker`'s model in its precision and on its lane; estimates are handed over by its `poll`.

        Only the worker's precision and probe_fraction count: α_K is the unbiased estimate by one forward-mode pass.

        Raises: MeasurementError where `most` is no positive whole number.
        """
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise MeasurementError(f"most: {most!r} is no number of snapshots; give 1 or more")
        self.worker = worker
        self.most = most
        self.options = MeasuringOptions(
            precision=worker.options.precision, probe_fraction=worker.options.probe_fraction
        )
        self._whole = replace(worker._tracker, tables="dense")
        self._batches = replace(worker._batches, options=self.options)
        self._kept: dict[int, _Kept] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps whose snapshots are kept, oldest first."""
        return tuple(sorted(self._kept))

    @property
    def bytes(self) -> int:
        """What the snapshots hold, in bytes."""
        held = {id(tensor): tensor.nbytes for kept in self._kept.values() for tensor in kept.tensors()}
        return sum(held.values())

    @property
    def most_bytes(self) -> int:
        """What they hold at most, in bytes, with tables kept whole."""
        held = [*self.worker._tracker.moving().values(), *self.worker.model.buffers()]
        return self.most * sum(tensor.numel() * tensor.element_size() for tensor in held)

    def keep(self, inputs: Tensor | tuple[Any, ...] | None = None, targets: Tensor | None = None, *, step: int) -> None:
        """Keep the present weights, those after `step` steps; with the rows that will probe them, if these are known.

        Raises: MeasurementError where there are `most` snapshots, or one of this step, or inputs without targets.
        """
        if step in self._kept:
            raise MeasurementError(f"keep: the snapshot of step {step} is there already; forget({step}) first")
        if len(self._kept) >= self.most:
            raise MeasurementError(
                f"keep: there are snapshots of steps {', '.join(map(str, self.steps))}, as many as most={self.most} "
                "allows; forget one first"
            )
        refuse_evaluating(self.worker._optimizers)
        batches = self._probe(inputs, targets)
        tracker: Tracker = self.worker._tracker if batches else self._whole
        self._kept[step] = _Kept(snapshot=tracker.snapshot(batches, apart=self.worker._apart), batches=batches)

    def forget(self, step: int) -> None:
        """Let go of the snapshot of `step`, if there is one; what is in flight holds its own."""
        self._kept.pop(step, None)

    def measure(
        self,
        inputs: Tensor | tuple[Any, ...] | None = None,
        targets: Tensor | None = None,
        *,
        step: int,
        since: int | None = None,
        rows: int | None = None,
    ) -> bool:
        """Measure the displacement from the snapshot of `since` (the oldest) to the present, after `step` steps.

        The estimate has `horizon` = `step` - `since` and counts as that of the last of these steps, `step` - 1, also
        for the worker's delay. The probe rows are given here or were given to `keep`. The snapshot stays.
        Returns False, and measures nothing, where a worker without a delay is still busy.

        Raises: MeasurementError where there is no such snapshot, no step has been made since, or the probe rows were
        given twice or not at all; where a parameter changed since that no optimizer of the worker moves.
        """
        kept, since = self._snapshot(since)
        if step <= since:
            raise MeasurementError(f"measure: no step lies between the snapshot of step {since} and step {step}")
        if kept.batches and targets is not None:
            raise MeasurementError("measure: the probe rows were given to keep() already; leave them out here")
        if not kept.batches and targets is None:
            raise MeasurementError("measure: no probe rows were given to keep(); give inputs and targets here")
        return self.worker.measure_since(
            kept.snapshot,
            kept.batches or self._probe(inputs, targets, rows),
            self.options,
            horizon=step - since,
            step=step - 1,
        )

    def carry_out(
        self,
        plan: HorizonPlan,
        inputs: Tensor | tuple[Any, ...],
        targets: Tensor,
        *,
        step: int,
        fresh: bool = True,
        rows: int | None = None,
    ) -> bool:
        """Do what a policy plans after `step` steps; (`inputs`, `targets`) is the probe batch, of rows not trained on:
        its first `rows`, by default those of the `probe_fraction`.

        A probe that is not `fresh`, or whose snapshot is not there, is not measured. Returns whether one was.
        """
        measured = (
            fresh and plan.since in self._kept and self.measure(inputs, targets, step=step, since=plan.since, rows=rows)
        )
        for old in plan.forget:
            self.forget(old)
        if plan.keep:
            self.keep(step=step)
        return measured

    def state_dict(self) -> dict[str, Tensor]:
        """The snapshots, without copies, as `STEP/values/NAME` and `STEP/buffers/NAME`.

        Raises: MeasurementError for a snapshot whose probe rows were given ahead, of which only these are kept.
        """
        found = {}
        for step, kept in self._kept.items():
            if kept.batches:
                raise MeasurementError(
                    f"state_dict: of the snapshot of step {step} only the rows that will be probed are kept; measure "
                    "and forget it first, or keep() it without them"
                )
            for kind, named in (("values", kept.snapshot.values), ("buffers", kept.snapshot.buffers)):
                found |= {f"{step}/{kind}/{name}": tensor for name, tensor in named.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold the snapshots of `state_dict`, in copies on the model's device, and no others.

        Raises: MeasurementError where they are of another model or more than `most`.
        """
        self._kept = {}
        for step in sorted({int(name.split("/", 1)[0]) for name in state}):
            self.keep(step=step)
            snapshot = self._kept[step].snapshot
            for kind, named in (("values", snapshot.values), ("buffers", snapshot.buffers)):
                for name, tensor in named.items():
                    found = state.get(f"{step}/{kind}/{name}")
                    if found is None or found.shape != tensor.shape:
                        raise MeasurementError(f"load_state_dict: the snapshot of step {step} has no {name!r} like it")
                    tensor.detach().copy_(found)

    def _snapshot(self, since: int | None) -> tuple[_Kept, int]:
        if not self._kept:
            raise MeasurementError("measure: there is no snapshot; keep() the weights some steps before")
        since = self.steps[0] if since is None else since
        if since not in self._kept:
            raise MeasurementError(
                f"measure: there is no snapshot of step {since}; there are those of {', '.join(map(str, self.steps))}"
            )
        return self._kept[since], since

    def _probe(
        self, inputs: Tensor | tuple[Any, ...] | None, targets: Tensor | None, rows: int | None = None
    ) -> tuple[Batch, ...]:
        """The probe rows in memory of their own; () where there are none."""
        if targets is None and inputs is None:
            return ()
        if targets is None or inputs is None:
            raise MeasurementError("the probe rows: inputs and targets belong together; give both or neither")
        return tuple(batch.copied() for batch in self._batches(inputs, targets, None, None, rows))
