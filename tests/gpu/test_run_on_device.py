"""What a run asks of the device: never waited for, its memory flat, estimates on time, work side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.device import DevicePair
from stepsize import StepSizeWorker
from stepsize.measuring.handoff import SideStream
from tests.cases import CASES
from tests.gpu.runs import STEPS, PairsOf, settings, trained
from tests.lanes import LaggingLane
from trainer.step import Trained, TrainStep

SLEEP_CYCLES = 200_000_000
"""About a tenth of a second."""
KIBIBYTE = 1 << 10


@contextmanager
def refused_waits() -> Iterator[Callable[[int], None]]:
    """From the tenth step to the one before the last, torch raises at whatever would wait for a stream."""

    def at(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 10 <= step < STEPS - 4 else "default")

    try:
        yield at
    finally:
        torch.cuda.set_sync_debug_mode("default")


def measuring_always(data: Path, **sections: Any) -> Any:
    return settings(data, stepsize={"interval": 1, "count": 1, "start": 0}, **sections)


@pytest.mark.gpu
@pytest.mark.parametrize("table", ["lazy", "dense"])
@pytest.mark.parametrize("policy", ["observe", "auto"])
def test_fifty_measured_steps_wait_for_nothing(data: Path, policy: str, table: str) -> None:
    config = measuring_always(data, policy=policy, optimizer={"table": table})
    with refused_waits() as at:
        ended = trained(config, "cuda", after_step=at)
    assert len(ended.steps) == STEPS
    expected = trained(config, "cpu").estimates  # `auto` measures nothing while it cools down
    assert [estimate.step for estimate in ended.estimates] == [estimate.step for estimate in expected]
    assert len(expected) >= STEPS - 10


@pytest.mark.gpu
def test_a_step_that_waits_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainStep.__call__

    def waiting(self: TrainStep, *arguments: Any, **options: Any) -> Trained:
        trained = step(self, *arguments, **options)
        trained.loss.item()
        return trained

    monkeypatch.setattr(TrainStep, "__call__", waiting)
    with pytest.raises(RuntimeError, match="synchronizing"), refused_waits() as at:
        trained(measuring_always(data), "cuda", after_step=at)


class SleepingLane(SideStream):
    """A side stream that is held back before each measurement."""

    def submit(self, work: Callable[[], Any], uses: Any) -> Any:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(SLEEP_CYCLES)
        return super().submit(work, uses)


def slow_lane(device: str) -> Any:
    """A lane whose every measurement takes longer than some steps."""
    return SleepingLane(torch.device(device)) if device == "cuda" else LaggingLane(3)


def test_with_a_delay_every_estimate_comes_at_that_age_and_none_is_dropped(data: Path, device: str) -> None:
    ended = trained(measuring_always(data), device, lane=slow_lane(device))
    assert [estimate.step for estimate in ended.estimates] == list(range(STEPS))[: len(ended.estimates)]
    assert len(ended.estimates) == STEPS
    assert {estimate.age for estimate in ended.estimates[: STEPS - 4]} == {4}
    assert "dropped" not in {estimate.outcome.value for estimate in ended.estimates}


def test_without_one_estimates_are_dropped_and_counted(device: str) -> None:
    case, lane = CASES["dlrm_bce"], slow_lane(device)
    model = case.model().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, case.loss, self_check=False, lane=lane)
    inputs, targets = case.batch(1)
    inputs, targets = tuple(tensor.to(device) for tensor in inputs), targets.to(device)
    case.torch_loss(model(*inputs), targets).backward()
    found = []
    for step in range(8):
        if isinstance(lane, LaggingLane):
            lane.tick()
        with worker.around_step(inputs, targets, step=step):
            optimizer.step()
        found += worker.poll(step=step)
    found += worker.flush(step=7)
    outcomes = [estimate.outcome.value for estimate in sorted(found, key=lambda estimate: estimate.step)]
    assert len(outcomes) == 8
    assert outcomes[:2] == ["ok", "dropped"]
    assert worker.counts["dropped"] == outcomes.count("dropped") >= 4


def bytes_held(device: str) -> int:
    """Of tensors on the device that somebody still has."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    kinds = (Tensor, torch.nn.Parameter)
    tensors = (item for item in gc.get_objects() if type(item) in kinds and item.layout is torch.strided)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def growth(data: Path, device: str, *, keep: bool = False) -> tuple[int, int]:
    """By how much what is held, and its peak on CUDA, grow from step 50 to 500; `keep` leaks the pairs."""
    first, last = (50, 500) if device == "cuda" else (10, 60)
    held: dict[int, int] = {}
    peak: dict[int, int] = {}
    leaked: list[DevicePair] = []

    def at(step: int) -> None:
        if step in (first, last):
            held[step] = bytes_held(device)
            if device == "cuda":
                peak[step] = torch.cuda.max_memory_allocated()

    config = settings(data, steps=last + 3, data={"batch_rows": 16, "prefetch_batches": 1})
    look = leaked.append if keep else lambda pair: None
    trained(config, device, after_step=at, pairs=lambda state: PairsOf(state, look))
    return held[last] - held[first], peak.get(last, 0) - peak.get(first, 0)


@pytest.mark.gpu
def test_memory_is_flat_from_step_50_to_500(data: Path, device: str) -> None:
    """Not in a session with all other tests: what they hold would be looked through."""
    held, peak = growth(data, device)
    leaked, _ = growth(data, device, keep=True)
    assert leaked > 20 * KIBIBYTE, "pairs that are never let go are noticed"
    assert held < leaked / 3
    assert held < 64 * KIBIBYTE
    assert peak < 1024 * KIBIBYTE


Interval = tuple[float, float]


def overlapping(some: list[Interval], others: list[Interval]) -> float:
    """How long, in all, one of `some` and one of `others` ran at the same time."""
    return sum(max(0.0, min(end, ends) - max(start, starts)) for start, end in some for starts, ends in others)


def test_overlap_is_counted_where_both_run() -> None:
    assert overlapping([(0, 10)], [(2, 3), (9, 12)]) == 2
    assert overlapping([(0, 1), (2, 3)], [(1, 2)]) == 0


class Marked:
    """Timing events around stretches of work, as milliseconds since `start` once all is done."""

    def __init__(self) -> None:
        self.start = self.now()
        self._stretches: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @staticmethod
    def now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def stretch(self) -> Iterator[None]:
        began = self.now()
        yield
        self._stretches.append((began, self.now()))

    def intervals(self) -> list[Interval]:
        torch.cuda.synchronize()
        elapsed = self.start.elapsed_time
        return [(elapsed(began), elapsed(ended)) for began, ended in self._stretches]


def measuring_beside_training(lane: SideStream) -> float:
    """Milliseconds in which a measurement and the next step's products both ran, where both take a while."""
    training, side = Marked(), Marked()
    training.start = side.start
    matrix = torch.randn(512, 512, device="cuda")

    def work() -> dict[str, Tensor]:
        with side.stretch():
            torch.cuda._sleep(SLEEP_CYCLES)
            return {"sum": matrix.double().sum().reshape(1)}

    lane.submit(work, uses=[matrix])
    with training.stretch():
        product = matrix
        for _ in range(50):
            product = product @ matrix
    return overlapping(training.intervals(), side.intervals())


@pytest.mark.gpu
def test_measuring_runs_beside_the_next_step() -> None:
    lane = SideStream(torch.device("cuda"))
    measuring_beside_training(lane)  # loads the kernels
    assert measuring_beside_training(lane) > 0
    lane.stream = torch.cuda.current_stream()
    assert measuring_beside_training(lane) == 0, "work on one stream is told from work on two"


def copying_beside_training(stream: torch.cuda.Stream) -> float:
    """Milliseconds in which a copy of 64 MiB to the device and training's work both ran."""
    training, copying = Marked(), Marked()
    training.start = copying.start
    host = torch.empty(1 << 24, dtype=torch.float32, pin_memory=True)
    with training.stretch():
        torch.cuda._sleep(SLEEP_CYCLES)
    with torch.cuda.stream(stream), copying.stretch():
        host.to("cuda", non_blocking=True)
    return overlapping(training.intervals(), copying.intervals())


@pytest.mark.gpu
def test_copies_run_beside_the_step() -> None:
    stream = torch.cuda.Stream()
    copying_beside_training(stream)
    assert copying_beside_training(stream) > 0
    assert copying_beside_training(torch.cuda.current_stream()) == 0
