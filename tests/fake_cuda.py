"""A CUDA device that is not there, for what streams, events and freed memory may do to code that forgets one of them.

What is launched runs late: when somebody waits for it, or in between, in any order that streams and events allow.
Freed memory is filled with all bits set (NaN) as early as torch's allocator might hand it out again: behind what its
own stream has been given, and behind those streams that it was recorded on, but behind no other.

    with FakeCuda(seed).installed():
        copy = host.to("cuda", non_blocking=True)     # `torch.cuda.Stream`, `Event`, `stream` are the fake's too

Code on other threads enters `mode()` itself. Host memory has no such fate: torch keeps pinned memory until copies from
it are through, but what is written into it meanwhile is copied.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import permutations
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.device import streams

DEVICE = "cuda:0"
RANKS = tuple(permutations(range(3)))


class Event:
    """A place in a stream's work; recording it again moves it."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.recorded = self.passed = 0

    def record(self, stream: Stream | None = None) -> None:
        with self.cuda.lock:
            self.recorded += 1
            number = self.recorded
            (stream or self.cuda.current).give(lambda: self._pass(number))

    def query(self) -> bool:
        with self.cuda.lock:
            self.cuda.go_on()
            return self.passed >= self.recorded

    def synchronize(self) -> None:
        number = self.recorded
        self.cuda.run(until=lambda: self.passed >= number)

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds; here time is nothing."""
        assert self.query()
        assert other.query()
        return 0.0

    def _pass(self, number: int) -> None:
        self.passed = number


class Stream:
    """Work in order; `rank` says when it is its turn among streams that could go on."""

    def __init__(self, cuda: FakeCuda, *, of_memory: bool = False) -> None:
        self.cuda, self.of_memory = cuda, of_memory
        self.device, self.device_index = torch.device(DEVICE), 0
        made = sum(not stream.of_memory for stream in cuda.streams)
        self.rank = -1 if of_memory else cuda.ranks[made % len(cuda.ranks)] if cuda.ranks else 0
        self._work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        cuda.streams.append(self)

    def give(self, work: Callable[[], None], *, when: Callable[[], bool] = lambda: True) -> None:
        with self.cuda.lock:
            self._work.append((when, work))
            self.cuda.go_on()

    def ready(self) -> bool:
        return bool(self._work) and self._work[0][0]()

    def empty(self) -> bool:
        return not self._work

    def spent(self) -> bool:
        """Of freed memory: it has been handed out."""
        return self.of_memory and not self._work

    def do_one(self) -> None:
        self._work.popleft()[1]()

    def wait_event(self, event: Event) -> None:
        number = event.recorded
        self.give(lambda: None, when=lambda: event.passed >= number)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.cuda)
        event.record(other)
        self.wait_event(event)


class Block:
    """The memory of one tensor and its views; what is freed goes to whoever asks next on its stream."""

    def __init__(self, cuda: FakeCuda, data: Tensor) -> None:
        self.cuda, self.stream, self.data = cuda, cuda.current, data
        self.recorded: set[Stream] = {self.stream}

    def __del__(self) -> None:
        if self.cuda.gone:
            return
        with self.cuda.lock:
            data, events = self.data, []
            for stream in self.recorded:
                event = Event(self.cuda)
                event.record(stream)
                events.append(event)
            handing_out = Stream(self.cuda, of_memory=True)
            handing_out.give(lambda: _fill(data), when=lambda: all(event.passed for event in events))


class DeviceTensor(Tensor):
    """What looks like a tensor on the device; `data` is its memory, which only launched work may touch."""

    memory: Tensor
    block: Block

    @staticmethod
    def __new__(cls, memory: Tensor, block: Block) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            memory.size(),
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=torch.device("meta"),  # of a device that torch was not built for it would make no views
        )
        made.memory, made.block = memory, block
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device(DEVICE)

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    def record_stream(self, s: Any) -> None:
        self.block.recorded.add(s)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Views are made at once; everything else is launched on the current stream."""
        kwargs = kwargs or {}
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeviceTensor))
        return first.block.cuda.launch(func, args, kwargs)


class _Mode(TorchDispatchMode):
    """Copies from the host to the device, and pinned memory, of which nothing else here would know."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "cuda":
            return self.cuda.launch(func, args, kwargs)
        return func(*args, **kwargs)


class FakeCuda:
    """The device. `seed` decides how late it runs, and in which order.

    Of the first six, work is done only when the host waits for some, each stream has its rank among the first three
    that are made, and memory is handed out at once; of later ones all of it is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self.ranks = RANKS[seed] if seed < len(RANKS) else None
        self._pace = 0 if self.ranks else self.draw.choice((0, 1, 3))
        self._busy, self.gone = False, False
        self._local = threading.local()
        self.default = Stream(self)

    @property
    def current(self) -> Stream:
        return getattr(self._local, "stream", self.default)

    def mode(self) -> TorchDispatchMode:
        """Within it this thread has the device."""
        return _Mode(self)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self._local.stream = self.current, stream
        try:
            yield
        finally:
            self._local.stream = before

    @contextmanager
    def installed(self) -> Iterator[FakeCuda]:
        """Within it `torch.cuda` is this device, on this thread."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "_lazy_init", lambda: None)
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            patch.setattr(streams, "_streams", {})
            patch.setattr(torch.cuda, "Stream", lambda *_, **__: Stream(self))
            patch.setattr(torch.cuda, "Event", lambda *_, **__: Event(self))
            patch.setattr(torch.cuda, "stream", self.on)
            patch.setattr(torch.cuda, "device", lambda _: nullcontext())
            patch.setattr(torch.cuda, "current_stream", lambda *_: self.current)
            with self.mode():
                try:
                    yield self
                finally:
                    self.gone = True

    def launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`func` on the current stream, as torch would have it; the host goes on at once."""
        with self.lock:
            found = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeviceTensor)]
            real_args, real_kwargs = tree_map(_memory, (args, kwargs))
            if "device" in real_kwargs:
                real_kwargs["device"] = torch.device("cpu")  # where all memory of this device lies
            if func.is_view:
                return tree_map(lambda value: _wrapped(value, found[0].block), func(*real_args, **real_kwargs))
            if func._schema.is_mutable:
                self.current.give(lambda: func(*real_args, **real_kwargs))
                return args[0]
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
                self.run(until=self.current.empty)
                return func(*real_args, **real_kwargs)
            shapes = func(*tree_map(_meta, real_args), **{**tree_map(_meta, real_kwargs), **_on_meta(kwargs)})
            outputs = tree_map(_empty, shapes)
            self.current.give(lambda: _copy(outputs, func(*real_args, **real_kwargs)))
            to_host = bool(found) and kwargs.get("device") == torch.device("cpu")  # an operation's own is cuda or meta
            from_host = not found and not kwargs.get("non_blocking")
            if to_host or from_host:
                self.run(until=self.current.empty)
            if to_host:
                return outputs
            return tree_map(lambda value: _wrapped(value, Block(self, value)), outputs)

    def go_on(self) -> None:
        """Some of the work is done meanwhile."""
        for _ in range(self.draw.randint(0, self._pace)):
            if not self._do_one():
                return

    def run(self, *, until: Callable[[], bool] | None = None) -> None:
        """Works until then, or until nothing is left."""
        while True:
            with self.lock:
                if until is not None and until():
                    return
                done = self._do_one()
                if not done and until is None:
                    assert all(stream.empty() for stream in self.streams), "streams wait for one another"
                    return
            if not done:
                time.sleep(0)  # another thread has to launch something first

    def _do_one(self) -> bool:
        if self._busy:  # memory was freed while work is being done
            return False
        self.streams = [stream for stream in self.streams if not stream.spent()]
        ready = [stream for stream in self.streams if stream.ready()]
        if not ready:
            return False
        chosen = min(ready, key=lambda stream: stream.rank) if self.ranks else self.draw.choice(ready)
        self._busy = True
        try:
            chosen.do_one()
        finally:
            self._busy = False
        return True


def _memory(value: Any) -> Any:
    return value.memory if isinstance(value, DeviceTensor) else value


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": torch.device("meta")} if "device" in kwargs else {}


def _empty(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)
    _fill(made)
    return made


def _fill(memory: Tensor) -> None:
    memory.view(-1).view(torch.uint8).fill_(255) if memory.is_contiguous() else memory.fill_(-1)


def _copy(outputs: Any, values: Any) -> None:
    for output, value in zip(tree_leaves(outputs), tree_leaves(values), strict=True):
        output.copy_(value)


def _wrapped(value: Any, block: Block) -> Any:
    return DeviceTensor(value, block) if isinstance(value, Tensor) else value
