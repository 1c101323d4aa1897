"""The ring, the feed and the side stream of α* on a device that runs late, in any order, and reuses memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.device.feed import PairNode
from pipeline.device.ring import PinnedRing, _Slot
from stepsize.measuring.handoff import SideStream
from tests import fake_cuda
from tests.fake_cuda import DEVICE, FakeCuda
from tests.tiny_data import feed

SEEDS = range(8)
MACHINES_OF_EACH = 4
"""That every order must come right on; a mistake that is planted is looked for on all."""
HELD = ("ring", "training", "side", "none")
SLEEP_CYCLES = 20_000_000
"""About a hundredth of a second of a GPU."""
PAIRS = 16


class Simulated:
    """A device that is late as the seed has it."""

    def __init__(self, seed: int) -> None:
        self._cuda = FakeCuda(seed)
        self.finish = self._cuda.run

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it `torch.cuda` is this device, on the feed's thread too."""
        making = PairNode.next

        def on_the_thread(node: PairNode) -> Any:
            with self._cuda.mode():
                return making(node)

        with pytest.MonkeyPatch.context() as patch, self._cuda.installed():
            patch.setattr(PairNode, "next", on_the_thread)
            yield

    def hold(self, role: str, stream: Any) -> None:
        """The seed holds streams back."""

    def host(self, tensor: Tensor) -> Tensor:
        return tensor.memory if isinstance(tensor, fake_cuda.DeviceTensor) else tensor


class Real:
    """The GPU, one of whose streams is held back before each of its pairs; memory that is freed is filled with NaN."""

    def __init__(self, held: str) -> None:
        self._held = held

    @contextmanager
    def installed(self) -> Iterator[None]:
        making, machine = PinnedRing.upload, self

        def held_back(ring: PinnedRing, batch: Any) -> Any:
            machine.hold("ring", ring._stream)
            made = making(ring, batch)
            with torch.cuda.stream(ring._stream):
                for tensor in made:
                    torch.empty(tensor.nbytes, dtype=torch.uint8, device=tensor.device).fill_(255)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PinnedRing, "upload", held_back)
            yield

    def hold(self, role: str, stream: Any) -> None:
        if role == self._held:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(SLEEP_CYCLES)

    def finish(self) -> None:
        torch.cuda.synchronize()

    def host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu()


MACHINES = [
    pytest.param([lambda seed=seed: Simulated(seed) for seed in SEEDS], id="simulated"),
    pytest.param([lambda held=held: Real(held) for held in HELD], id="cuda", marks=pytest.mark.gpu),
]


def trained_and_measured(data: Path, machine: Simulated | Real, **options: Any) -> list[list[Tensor]]:
    """For each pair what training read of B1 and B2, and what the side stream read of B1, once all has run."""
    with machine.installed():
        side = SideStream(torch.device(DEVICE))
        seen, pending = [], []
        with feed(data, device=torch.device(DEVICE), **options) as pairs:
            for pair in islice(pairs, PAIRS):
                machine.hold("training", torch.cuda.current_stream())
                seen.append([part.clone() for part in (*pair.b1, *pair.b2)])
                machine.hold("side", side.stream)
                pending.append(side.submit(lambda b1=pair.b1: measured(b1), uses=pair.b1))
        machine.finish()
        return [
            [machine.host(value) for value in values] + [torch.tensor(numbers) for numbers in one.read().values()]
            for values, one in zip(seen, pending, strict=True)
        ]


def measured(b1: tuple[Tensor, ...]) -> dict[str, Tensor]:
    dense, ids, label = b1
    return {"dense": dense.double().sum(1), "ids": ids.double().sum(0), "label": label.double().clone()}


@pytest.fixture
def expected(tiny_data: Path) -> Callable[..., list[list[Tensor]]]:
    """The same by the feed of the CPU, where nothing is late."""

    def by_cpu(**options) -> list[list[Tensor]]:
        with feed(tiny_data, **options) as pairs:
            return [
                [*pair.b1, *pair.b2, *(value.double() for value in measured(pair.b1).values())]
                for pair in islice(pairs, PAIRS)
            ]

    return by_cpu


def equal(found: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
    """Up to the last bit of the logarithm, which the host's encoding may round otherwise."""
    return all(
        torch.allclose(one.double(), other.double(), rtol=3e-7, atol=0)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


OPTIONS = [
    {"pairing": "sliding", "prefetch_batches": 1},
    {"pairing": "sliding", "prefetch_batches": 4},
    {"pairing": "disjoint", "prefetch_batches": 2},
]


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_order_of_the_device_mixes_rows(tiny_data, expected, machines, options):
    right = expected(**options)
    for number, machine in enumerate(machines[:MACHINES_OF_EACH]):
        assert equal(trained_and_measured(tiny_data, machine(), **options), right), f"machine {number}"


def no_wait_for_the_slot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Slot, "wait", lambda slot: None)


def no_waiting_for_events(patch: pytest.MonkeyPatch) -> None:
    for stream in (fake_cuda.Stream, torch.cuda.Stream):
        patch.setattr(stream, "wait_event", lambda stream, event: None)


def no_recorded_streams(patch: pytest.MonkeyPatch) -> None:
    for tensor in (fake_cuda.DeviceTensor, Tensor):
        patch.setattr(tensor, "record_stream", lambda tensor, stream: None)


def no_wait_for_training(patch: pytest.MonkeyPatch) -> None:
    for stream in (fake_cuda.Stream, torch.cuda.Stream):
        patch.setattr(stream, "wait_stream", lambda stream, other: None)


def mark_before_the_copies(patch: pytest.MonkeyPatch) -> None:
    upload = PinnedRing.upload

    def marked(ring: Any, batch: Any) -> Any:
        ring.early = early = torch.cuda.Event()
        early.record(ring._stream)
        return upload(ring, batch)

    patch.setattr(PinnedRing, "upload", marked)
    patch.setattr(PinnedRing, "mark", lambda ring: ring.early)


MUTANTS = [
    no_wait_for_the_slot,
    no_waiting_for_events,
    no_recorded_streams,
    no_wait_for_training,
    mark_before_the_copies,
]


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_one_of_its_protections_rows_are_mixed(tiny_data, expected, monkeypatch, machines, mutant):
    right = expected()
    mutant(monkeypatch)
    assert not all(equal(trained_and_measured(tiny_data, machine()), right) for machine in machines)


@pytest.mark.parametrize("machines", MACHINES)
def test_a_feed_closed_while_copies_are_in_flight_goes_on_where_it_was(tiny_data, machines):
    for number, make in enumerate(machines[:MACHINES_OF_EACH]):
        machine = make()
        with machine.installed():
            seen = []
            with feed(tiny_data, device=torch.device(DEVICE)) as pairs, feed(tiny_data) as by_cpu:
                for index in range(12):
                    machine.hold("training", torch.cuda.current_stream())
                    seen.append(([part.clone() for part in next(pairs).b2], next(by_cpu)))
                    if index % 3 == 2:
                        pairs.close()
            machine.finish()
            for values, other in seen:
                found = [machine.host(value) for value in values]
                assert equal([found], [list(other.b2)]), f"machine {number}"
