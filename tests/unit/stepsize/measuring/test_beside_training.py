"""A measurement that runs beside training reads nothing that training writes to: begun steps later, it is the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize import AutogradLoss, Estimate, MeasurementError, Outcome, StepSizeWorker
from stepsize.measuring import Batch, Tracker, handoff, kept
from stepsize.measuring.kept import TensorsApart
from tests.cases import CASES
from tests.lanes import DeferredLane

CE = nn.CrossEntropyLoss()
LAG, STEPS = 3, 9


def estimates(
    model: nn.Module,
    loss: Any,
    batches: list[tuple[tuple[Tensor, ...], Tensor]],
    *,
    lane: DeferredLane | None,
    between: Callable[[], None] = lambda: None,
    train_loss: Any = None,
    **options: Any,
) -> list[Estimate]:
    """STEPS steps of momentum, each measured with the next batch, handed over LAG + 1 steps later."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.5)
    worker = StepSizeWorker(model, optimizer, loss, delay=LAG + 1, lane=lane, self_check=False, **options)
    found: list[Estimate] = []
    torch.manual_seed(7)
    for step in range(STEPS):
        (inputs, targets), (probe, probed) = batches[step], batches[step + 1]
        optimizer.zero_grad()
        (train_loss or loss)(model(*inputs), targets).backward()
        with worker.around_step(probe, probed, train_inputs=inputs, train_targets=targets, step=step):
            optimizer.step()
        found += worker.poll(step=step)
        between()
        if lane is not None:
            lane.tick()
    found += worker.flush(step=STEPS - 1)
    worker.close()
    return found


def same(found: list[Estimate], expected: list[Estimate]) -> bool:
    assert len(found) == len(expected) == STEPS
    return [repr(one) for one in found] == [repr(one) for one in expected]


def batches_of(columns: int = 6, seed: int = 0) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [((torch.randn(24, columns, generator=g),), torch.randint(4, (24,), generator=g)) for _ in range(STEPS + 1)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "options",
    [{}, {"estimators": ("unbiased", "hybrid"), "per_group": True, "diagnostics": "full"}, {"method": "secant"}],
    ids=["jvp", "everything", "secant"],
)
def test_every_model_of_the_catalogue(name, options):
    case = CASES[name]
    batches = [case.batch(seed) for seed in range(STEPS + 1)]

    def run(lane: DeferredLane | None) -> list[Estimate]:
        return estimates(case.model(), case.loss, batches, lane=lane, train_loss=case.torch_loss, **options)

    assert same(run(DeferredLane(LAG)), run(None))


class Stateful(nn.Module):
    """x (R, 6) to logits (R, 4), scaled by what `factor` keeps outside of parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.begin()

    def begin(self) -> None: ...

    def factor(self, h: Tensor) -> Any:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        return self.b(h * self.factor(h))


class Normalized(Stateful):
    def begin(self) -> None:
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)

    def factor(self, h: Tensor) -> Any:
        return self.drop(self.norm(h))


class Averaging(Stateful):
    def begin(self) -> None:
        self.average = torch.zeros(8)
        self.same = self.average

    def factor(self, h: Tensor) -> Any:
        self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return 1 + self.average + self.same


class InAList(Stateful):
    def begin(self) -> None:
        self.recent = [torch.zeros(8)]

    def factor(self, h: Tensor) -> Any:
        self.recent[0].add_(h.detach().mean(0))
        return 1 + self.recent[0]


class Temperature(Stateful):
    """Its factor is set by the training loop."""

    def begin(self) -> None:
        self.scale = torch.ones(())

    def factor(self, h: Tensor) -> Any:
        return self.scale


class Followed(Stateful):
    """Reads a second network that the training loop moves after it."""

    def begin(self) -> None:
        self.slow = nn.Linear(8, 8).requires_grad_(False)

    def follow(self) -> None:
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.a.weight @ self.a.weight.T, alpha=0.1)

    def factor(self, h: Tensor) -> Any:
        return 1 + self.slow(h)


class MovingMargin(nn.Module):
    """A loss with centres of its own and an average in a buffer, which something else moves between the steps."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.eye(4))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy((z - self.average) @ self.centres, y, reduction="none")

    def move(self) -> None:
        with torch.no_grad():
            self.centres.mul_(0.9).add_(0.05)
            self.average.add_(0.1).mul_(torch.tensor([0.5, 1.5, 1.0, 2.0]))


def stateful_run(kind: type[Stateful], lane: DeferredLane | None, **options: Any) -> list[Estimate]:
    torch.manual_seed(0)
    model = kind()

    def between() -> None:
        if isinstance(model, Followed):
            model.follow()
        if isinstance(model, Temperature):
            model.scale.mul_(0.8)

    return estimates(model, CE, batches_of(), lane=lane, between=between, **options)


@pytest.mark.parametrize("kind", [Normalized, Averaging, Temperature])
@pytest.mark.parametrize("options", [{}, {"estimators": ("biased",)}, {"diagnostics": "full"}], ids=str)
def test_state_outside_of_the_parameters(kind, options):
    assert same(stateful_run(kind, DeferredLane(LAG), **options), stateful_run(kind, None, **options))


def own_loss_run(lane: DeferredLane | None, **options: Any) -> list[Estimate]:
    torch.manual_seed(0)
    model, margin = Stateful(), MovingMargin()
    loss = AutogradLoss(margin)
    mean = lambda z, y: margin(z, y).mean()  # noqa: E731
    return estimates(model, loss, batches_of(), lane=lane, between=margin.move, train_loss=mean, **options)


@pytest.mark.parametrize("options", [{}, {"method": "secant"}, {"diagnostics": "full"}], ids=str)
def test_a_loss_with_state_and_weights_of_its_own(options):
    assert same(own_loss_run(DeferredLane(LAG), **options), own_loss_run(None, **options))


def in_one_place(lane: DeferredLane | None) -> list[Estimate]:
    """Every batch is copied into the same two tensors, as for a CUDA graph."""
    batches = batches_of()
    x, y = torch.empty(24, 6), torch.empty(24, dtype=torch.long)

    class Reused(list):
        def __getitem__(self, index: Any) -> Any:
            (inputs,), targets = batches[index]
            return (x.copy_(inputs),), y.copy_(targets)

    torch.manual_seed(0)
    return estimates(Stateful(), CE, Reused(), lane=lane)


def test_a_batch_in_memory_that_is_used_again():
    assert same(in_one_place(DeferredLane(LAG)), in_one_place(None))


def test_a_parameter_that_somebody_else_moves_is_copied_once_that_is_known():
    """What was in flight when it first moved is void and counted; everything after is exact."""
    found, expected = stateful_run(Followed, DeferredLane(LAG)), stateful_run(Followed, None)
    dropped = [one.step for one in found if one.outcome is Outcome.DROPPED]
    assert dropped == [0]
    assert [repr(one) for one in found[1:]] == [repr(one) for one in expected[1:]]


def test_a_parameter_that_holds_still_is_not_copied():
    model = Followed()
    optimizer = torch.optim.SGD([*model.a.parameters(), *model.b.parameters()], lr=0.1)
    tracker = Tracker(model, [optimizer])
    (inputs, targets) = batches_of()[0]
    batch = Batch(inputs=inputs, targets=targets, generators=kept.Generators.capture(torch.device("cpu")))
    assert [tracker.snapshot([batch], apart=True).constants for _ in range(2)] == [{}, {}]
    model.follow()
    assert set(tracker.snapshot([batch], apart=True).constants) == {"slow.weight"}
    assert set(tracker.snapshot([batch], apart=True).constants) == {"slow.weight"}, "it may move again at any time"


def test_a_tensor_in_a_list_that_the_model_writes_to_is_asked_to_be_a_buffer():
    with pytest.raises(MeasurementError, match=r"'recent'.* on a stream of its own; make it a buffer"):
        stateful_run(InAList, DeferredLane(LAG))
    assert len(stateful_run(InAList, None)) == STEPS


PROTECTIONS = {
    "attributes": (
        kept.TensorsApart,
        "in_place",
        lambda self: nullcontext(set()),
        lambda lane: stateful_run(Temperature, lane),
    ),
    "the loss's own": (kept.TensorsApart, "in_place", lambda self: nullcontext(set()), own_loss_run),
    "batches": (Batch, "copied", lambda self: self, in_one_place),
}


@pytest.mark.parametrize("name", PROTECTIONS)
def test_without_a_protection_the_numbers_are_others(name, monkeypatch):
    owner, attribute, without, run = PROTECTIONS[name]
    expected = run(None)
    monkeypatch.setattr(owner, attribute, without)
    try:
        found = run(DeferredLane(LAG))
    except MeasurementError:
        return
    assert not same(found, expected)


def test_every_tensor_that_a_pass_may_read_is_told_to_the_lane():
    """Their memory must not be handed out again before the lane is through with it."""
    used: list[int] = []

    class Noting(DeferredLane):
        def submit(self, work: Any, uses: Any) -> Any:
            used.extend(tensor.data_ptr() for tensor in uses)
            return super().submit(work, [])

    torch.manual_seed(0)
    model, margin = Averaging(), MovingMargin()
    model.register_buffer("offset", torch.zeros(8))
    copies: list[TensorsApart] = []
    original = TensorsApart.of.__func__  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorsApart, "of", lambda *a, **k: copies.append(original(TensorsApart, *a, **k)) or copies[-1])
        mean = lambda z, y: margin(z, y).mean()  # noqa: E731
        estimates(model, AutogradLoss(margin), batches_of(), lane=Noting(LAG), train_loss=mean)
    held = [tensor.data_ptr() for found in copies for tensor in found.tensors()]
    assert len(held) == STEPS * 4, "average under two names, the loss's centres and average"
    assert set(held) <= set(used)


def test_what_is_in_flight_holds_no_more_than_the_pass_needs():
    """Once the lane has done its work nothing of θ0 and d is held, however late the estimate is handed over."""
    case, lane = CASES["dlrm_bce"], DeferredLane(LAG)
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, case.loss, delay=LAG + 5, lane=lane)
    inputs, targets = case.batch(0)
    case.torch_loss(model(*inputs), targets).backward()
    kept_values: list[weakref.ref[Tensor]] = []
    snapshot = worker._tracker.snapshot

    def noting(*arguments: Any, **options: Any) -> Any:
        made = snapshot(*arguments, **options)
        kept_values.extend(weakref.ref(value) for value in made.values.values())
        return made

    worker._tracker.snapshot = noting
    with worker.around_step(*case.batch(1), step=0):
        optimizer.step()
    gc.collect()
    assert all(ref() is not None for ref in kept_values)
    for _ in range(LAG):
        lane.tick()
    gc.collect()
    assert not [ref for ref in kept_values if ref() is not None]
    assert worker.poll(step=0) == []
    assert len(worker.flush()) == 1


def test_other_rows_looked_up_are_told_when_the_numbers_arrive(monkeypatch):
    """On a device the host cannot see ids; the comparison is made there and its result comes with the numbers."""
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    calls = iter(range(100))

    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(500, 6), nn.Linear(12, 4)

        def forward(self, ids: Tensor) -> Tensor:
            first = self.table(ids)
            return self.head(torch.cat([first, self.table((ids + next(calls)) % 500)], 1))

    model = Sampling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lane = DeferredLane(LAG)
    worker = StepSizeWorker(model, optimizer, CE, self_check=False, lane=lane)
    ids, y = torch.randint(500, (24,)), torch.randint(4, (24,))
    CE(model(ids), y).backward()
    with worker.around_step(ids, y, step=0):
        optimizer.step()
    assert worker.poll(step=0) == []
    with pytest.raises(MeasurementError, match=r"table 'table\.weight': look-up 1 differs .*tables=\"dense\""):
        worker.drain(step=1)
    assert worker.drain(step=2) == [], "the worker goes on"
