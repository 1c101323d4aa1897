"""Training's CUDA stream: of high priority, one a process, in order with the stream around it; nothing elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepsize.measuring.handoff import SideStream
from trainer.job.device import stream as module
from trainer.job.device.stream import training_stream

CUDA = torch.device("cuda", 0)


class FakeCuda:
    """Streams that note who waits for whom, and which one is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.made: list[Any] = []
        self.current = self.stream_named("default", 0)
        monkeypatch.setattr(torch.cuda, "Stream", self.make)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.within)

    def stream_named(self, name: str, priority: int) -> Any:
        stream = SimpleNamespace(name=name, priority=priority)
        stream.wait_stream = lambda other: self.log.append(f"{name} waits for {other.name}")
        return stream

    def make(self, device: torch.device, *, priority: int = 0) -> Any:
        self.made.append(self.stream_named(f"stream{len(self.made)}", priority))
        return self.made[-1]

    @contextmanager
    def within(self, stream: Any) -> Any:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    module._stream.cache_clear()
    yield FakeCuda(monkeypatch)
    module._stream.cache_clear()


def test_it_is_ahead_of_the_side_stream_and_in_order_with_the_stream_around_it(cuda):
    side = SideStream(CUDA).stream
    with training_stream(CUDA):
        assert cuda.current.priority < side.priority
        assert cuda.log == ["stream1 waits for default"]
    assert cuda.current.name == "default"
    assert cuda.log == ["stream1 waits for default", "default waits for stream1"]


def test_the_stream_around_it_waits_after_an_error_too(cuda):
    with pytest.raises(RuntimeError), training_stream(CUDA):
        raise RuntimeError
    assert cuda.log[-1] == "default waits for stream0"


def test_there_is_one_in_a_process(cuda):
    for _ in range(40):
        with training_stream(CUDA):
            pass
    assert len(cuda.made) == 1, "torch has 32 of a priority and hands them out again"


def test_elsewhere_it_is_nothing(cuda):
    with training_stream(torch.device("cpu")):
        assert cuda.current.name == "default"
    assert cuda.made == []


def measured_meanwhile(training: torch.cuda.Stream) -> int:
    """How many of the side stream's products are through when `training` is through with 20 of its own.

    Each product wants all of the GPU, and the side stream has been given its own first.
    """
    device = torch.device("cuda")
    side, matrix = SideStream(device).stream, torch.randn(4096, 4096, device=device)
    torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    through = [torch.cuda.Event() for _ in range(400)]
    with torch.cuda.stream(side):
        for event in through:
            torch.mm(matrix, matrix)
            event.record()
    with torch.cuda.stream(training):
        for _ in range(20):
            torch.mm(matrix, matrix)
        trained = torch.cuda.Event()
        trained.record()
    trained.synchronize()
    found = sum(event.query() for event in through)
    torch.cuda.synchronize()
    return found


@pytest.mark.gpu
def test_training_overtakes_what_is_measured():
    device = torch.device("cuda")
    with training_stream(device):
        ahead = torch.cuda.current_stream()
    assert measured_meanwhile(ahead) < measured_meanwhile(torch.cuda.Stream(device, priority=0))
