"""A table looked up more often than it has rows: every different row is kept once where few are, on any device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stepsize import Estimate, Outcome, StepSizeWorker
from stepsize.measuring import Batch, Generators, Tracker, handoff
from stepsize.measuring.tables import different_rows
from tests.cases import SmallDLRM
from tests.lanes import DeferredLane
from tests.looks import no_looks

ROWS, BATCH = 64, 40
BCE = nn.BCEWithLogitsLoss()


def batch(seed: int, different: int = 12) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """120 look-ups of `different` rows at most."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(ROWS, generator=g)[:different]
    ids = rows[torch.randint(different, (3, BATCH), generator=g)]
    dense = torch.randn(BATCH, 4, generator=g, dtype=torch.float64)
    return (dense, ids), torch.randint(2, (BATCH,), generator=g).double()


def estimates(different: list[int], *, lane: DeferredLane | None = None, **options: object) -> list[Estimate]:
    """Of one step each, B1 having so many different rows."""
    torch.manual_seed(0)
    model = SmallDLRM(table_rows=ROWS).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    worker = StepSizeWorker(model, optimizer, BCE, lane=lane, self_check=False, **options)  # pyright: ignore[reportArgumentType]
    found = []
    for step, rows in enumerate(different):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        BCE(model(*inputs), targets).backward()
        probe, probed = batch(100 + step, rows)
        with worker.around_step(probe, probed, train_inputs=inputs, train_targets=targets, step=step):
            optimizer.step()
        if lane is not None:
            lane.tick()
        found += worker.drain(step=step)
    return found


def numbers(found: list[Estimate]) -> list[object]:
    return [(one.outcome, one.slope, one.curvature, one.biased, one.groups) for one in found]


EVERYTHING = {"estimators": ("unbiased", "biased"), "per_group": True}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["b1", "b1 and b2"])
@pytest.mark.parametrize("device", ["host", "apart"])
def test_the_numbers_are_those_of_the_table_kept_whole(options, device, monkeypatch):
    expected = numbers(estimates([12] * 5, tables="dense", **options))
    lane = None
    if device == "apart":
        monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
        lane = DeferredLane(1)
    assert numbers(estimates([12] * 5, lane=lane, **options)) == expected


def snapshot(different: int) -> dict[str, list]:
    model = SmallDLRM(table_rows=ROWS).double()
    tracker = Tracker(model, [torch.optim.SGD(model.parameters(), lr=0.1)])
    inputs, targets = batch(0, different)
    found = tracker.snapshot(
        [Batch(inputs=inputs, targets=targets, generators=Generators.capture(torch.device("cpu")))]
    )
    return found.lookups[0]


def test_what_is_kept_is_every_different_row_once():
    [call] = snapshot(12)["table.weight"]
    assert sorted(call.ids.tolist()) == sorted(set(batch(0)[0][1].flatten().tolist()))
    assert call.before.shape == (len(call.ids), 8)
    assert torch.equal(call.looked_up(), batch(0)[0][1].flatten())


def test_on_a_device_there_is_room_for_twice_as_many(monkeypatch):
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    [call] = snapshot(12)["table.weight"]
    assert call.before.shape == (24, 8)
    assert torch.equal(call.looked_up(), batch(0)[0][1].flatten())


def test_a_table_with_most_of_its_rows_looked_up_is_kept_whole():
    assert snapshot(ROWS) == {}


def test_more_different_rows_than_room_is_a_measurement_dropped_and_more_room_for_the_next(monkeypatch):
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    found = estimates([6, 6, 13, 13, 13], lane=DeferredLane(1))
    assert [one.outcome is Outcome.DROPPED for one in found] == [False, False, True, False, False]
    whole = estimates([6, 6, 13, 13, 13], tables="dense")
    assert numbers(found[3:]) == numbers(whole[3:])


def test_on_the_host_there_is_always_room():
    assert numbers(estimates([6, 6, 13, 30, 64])) == numbers(estimates([6, 6, 13, 30, 64], tables="dense"))


@pytest.mark.parametrize("different", [1, 5, 8])
def test_distinct_waits_for_nothing_on_a_device(different, monkeypatch):
    ids = torch.arange(37).remainder(different) * 7
    here, places, overflow = different_rows(ids, table_rows=ROWS, room=8)
    assert overflow is None
    assert torch.equal(here[places], ids)
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    with no_looks():
        there, places, overflow = different_rows(ids, table_rows=ROWS, room=8)
    assert overflow is not None
    assert not overflow
    assert len(there) == 8
    assert torch.equal(there[places], ids)
    assert set(there.tolist()) == set(here.tolist()) | {0}


def test_distinct_tells_when_the_room_is_too_small(monkeypatch):
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    ids = torch.arange(20)
    for room, expected in ((19, True), (20, False), (21, False)):
        _, _, overflow = different_rows(ids, table_rows=ROWS, room=room)
        assert overflow is not None
        assert bool(overflow) is expected
