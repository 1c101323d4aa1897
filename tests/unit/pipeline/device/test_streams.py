"""The ring, the feed and the side stream of α* on a device that runs late, in any order, and reuses memory at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

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
PAIRS = 16


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeCuda], None]:
    """Gives the feed's thread the device, too."""
    original = PairNode.next

    def give(cuda: FakeCuda) -> None:
        def following(node: PairNode):
            with cuda.mode():
                return original(node)

        monkeypatch.setattr(PairNode, "next", following)

    return give


def as_values(batch: tuple[Tensor, ...]) -> list[Tensor]:
    """Reads of a batch, launched on the current stream."""
    return [part.clone() for part in batch]


def trained_and_measured(data: Path, seed: int, give: Callable[[FakeCuda], None], **options) -> list[list[Tensor]]:
    """For each pair what training read of B1 and B2, and what the side stream read of B1, once all has run."""
    cuda = FakeCuda(seed)
    with cuda.installed():
        give(cuda)
        side = SideStream(torch.device(DEVICE))
        seen, pending = [], []
        with feed(data, device=torch.device(DEVICE), **options) as pairs:
            for pair in islice(pairs, PAIRS):
                seen.append([*as_values(pair.b1), *as_values(pair.b2)])
                pending.append(side.submit(lambda b1=pair.b1: measured(b1), uses=pair.b1))
        cuda.run()
        return [
            [value.memory for value in values] + [torch.tensor(numbers) for numbers in one.read().values()]
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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_order_of_the_device_mixes_rows(tiny_data, threaded, expected, options):
    right = expected(**options)
    for seed in SEEDS:
        assert equal(trained_and_measured(tiny_data, seed, threaded, **options), right), f"seed {seed}"


def no_wait_for_the_slot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Slot, "wait", lambda slot: None)


def no_waiting_for_events(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fake_cuda.Stream, "wait_event", lambda stream, event: None)


def no_recorded_streams(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fake_cuda.DeviceTensor, "record_stream", lambda tensor, stream: None)


def no_wait_for_training(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fake_cuda.Stream, "wait_stream", lambda stream, other: None)


def mark_before_the_copies(patch: pytest.MonkeyPatch) -> None:
    upload = PinnedRing.upload

    def marked(ring, batch):
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


@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_one_of_its_protections_rows_are_mixed(tiny_data, threaded, expected, monkeypatch, mutant):
    right = expected()
    mutant(monkeypatch)
    assert not all(equal(trained_and_measured(tiny_data, seed, threaded), right) for seed in SEEDS)


def test_a_feed_closed_while_copies_are_in_flight_goes_on_where_it_was(tiny_data, threaded):
    for seed in SEEDS:
        cuda = FakeCuda(seed)
        with cuda.installed():
            threaded(cuda)
            seen = []
            with feed(tiny_data, device=torch.device(DEVICE)) as pairs, feed(tiny_data) as by_cpu:
                for index in range(12):
                    pair, other = next(pairs), next(by_cpu)
                    seen.append((as_values(pair.b2), other))
                    if index % 3 == 2:
                        pairs.close()
            del pair
            cuda.run()
            for values, other in seen:
                assert equal([[value.memory for value in values]], [list(other.b2)]), f"seed {seed}"
