"""Rows to evaluate on, from a device that runs late: never mixed, never waited for, and one stream in all a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.device import DataConfig
from pipeline.device.opening import open_rows
from pipeline.device.ring import PinnedRing
from pipeline.device.streams import hand_over, upload_stream
from pipeline.shards import Manifest
from pipeline.stages import StageTotals
from tests import fake_cuda
from tests.fake_cuda import DEVICE, FakeCuda

CUDA, CPU = torch.device(DEVICE), torch.device("cpu")
SEEDS = range(8)


def read(data: Path, device: torch.device) -> list[list[Tensor]]:
    """What the current stream reads of every batch, launched where the batch is taken, which is then let go."""
    options = {"table_rows": 1000, "device": device, "split": "train", "batch_rows": 5}
    rows = open_rows(DataConfig(path=str(data)), Manifest.load(data), **options)  # pyright: ignore[reportArgumentType]
    return [[part.clone() for part in batch] for batch in rows]


def read_late(data: Path, seed: int) -> list[list[Tensor]]:
    cuda = FakeCuda(seed)
    with cuda.installed():
        found = read(data, CUDA)
        cuda.run()
        return [[part.memory for part in parts] for parts in found]  # pyright: ignore[reportAttributeAccessIssue]


def equal(found: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
    """Up to the last bit of the logarithm, which the host's encoding may round otherwise."""
    return len(found) == len(expected) and all(
        torch.allclose(one.double(), other.double(), rtol=3e-7, atol=0)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


def test_no_order_of_the_device_mixes_rows(tiny_data):
    right = read(tiny_data, CPU)
    for seed in SEEDS:
        assert equal(read_late(tiny_data, seed), right), f"seed {seed}"


@pytest.mark.parametrize(
    ("owner", "protection"), [(fake_cuda.Stream, "wait_event"), (fake_cuda.DeviceTensor, "record_stream")]
)
def test_without_one_of_its_protections_rows_are_mixed(tiny_data, monkeypatch, owner, protection):
    right = read(tiny_data, CPU)
    monkeypatch.setattr(owner, protection, lambda *_: None)
    assert not all(equal(read_late(tiny_data, seed), right) for seed in SEEDS)


def test_the_host_waits_for_slots_alone(tiny_data, monkeypatch):
    """Of sixteen batches the first three find free slots, and none is waited for on its way to the model."""
    waited = []
    original = fake_cuda.Event.synchronize
    monkeypatch.setattr(fake_cuda.Event, "synchronize", lambda event: (waited.append(event), original(event)))
    assert len(read_late(tiny_data, 0)) == 16
    assert len(waited) == 16 - 3


def test_there_is_one_stream_a_role_however_often_a_split_is_read(tiny_data):
    cuda = FakeCuda(0)
    with cuda.installed():
        before = len([stream for stream in cuda.streams if not stream.of_memory])
        for _ in range(8):
            read(tiny_data, CUDA)
            PinnedRing(CUDA, table_rows=1000, stages=StageTotals())
        cuda.run()
        streams = [stream for stream in cuda.streams if not stream.of_memory]
        assert len(streams) - before == 2, "torch has 32 and hands them out again"
        assert upload_stream("evaluation", CUDA) is upload_stream("evaluation", torch.device("cuda"))
        assert upload_stream("evaluation", CUDA) is not upload_stream("feed", CUDA)


def test_what_is_complete_is_handed_over_as_it_is():
    hand_over([torch.zeros(1)], None)


@pytest.mark.gpu
def test_batches_from_cuda_are_those_of_the_cpu_while_their_memory_is_wanted_by_others(tiny_data):
    """A model that is late behind a sleep, and memory of a batch's size taken on the ring's stream meanwhile."""
    device = torch.device("cuda", 0)
    options = {"table_rows": 1000, "split": "train", "batch_rows": 5}
    config, manifest = DataConfig(path=str(tiny_data)), Manifest.load(tiny_data)
    for _ in range(20):
        found = []
        for batch in open_rows(config, manifest, device=device, **options):  # pyright: ignore[reportArgumentType]
            torch.cuda._sleep(1_000_000)
            found.append([part.clone() for part in batch])
            shapes = [(part.shape, part.dtype) for part in batch]
            del batch
            with torch.cuda.stream(upload_stream("evaluation", device)):
                for shape, dtype in shapes:
                    torch.full(shape, -1, dtype=dtype, device=device)
        by_cpu = open_rows(config, manifest, device=CPU, **options)  # pyright: ignore[reportArgumentType]
        assert equal([[part.cpu() for part in parts] for parts in found], [list(batch) for batch in by_cpu])
