"""The resume harness: cut midway, restore from what a checkpoint would hold, and compare bit for bit."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import load, save

from trainer.records import read_records
from trainer.records.serialization import deserialize, serialize


class Resumable(Protocol):
    """A stateful part under test."""

    def advance(self) -> Any:
        """One step; returns everything that can be seen of it."""

    def state(self) -> Any:
        """What a checkpoint holds of it."""

    def restore(self, state: Any) -> None:
        """Continue from such a state, on a newly made part."""


def assert_resumes(make: Callable[[], Resumable], *, steps: int = 6, cut: int = 3) -> None:
    """Asserts that `steps` steps equal `cut` steps, a trip through a checkpoint's form, and the remaining steps.

    Equal are the outputs of every step and the final states: every bit, dtype and Python type.
    """
    whole = make()
    outputs = [_frozen(whole.advance()) for _ in range(steps)]

    first = make()
    for index in range(cut):
        assert_identical(_frozen(first.advance()), outputs[index], f"step {index}, before the cut")
    saved = through_a_checkpoint(first.state())
    for _ in range(2):
        first.advance()  # what happens after saving must not reach what was saved

    second = make()
    second.restore(saved)
    for index in range(cut, steps):
        assert_identical(_frozen(second.advance()), outputs[index], f"step {index}, after the cut")
    assert_identical(_frozen(second.state()), _frozen(whole.state()), "final state")


def through_a_checkpoint(state: Any) -> Any:
    """The state after the forms it takes on disk, with no memory shared."""
    form, tensors = serialize(state)
    return deserialize(json.loads(json.dumps(form, allow_nan=False)), load(save(tensors)))


def assert_identical(found: Any, expected: Any, where: str = "value") -> None:
    """Asserts equality of nested values to the last bit; nan equals the same nan, 0.0 does not equal −0.0."""
    assert type(found) is type(expected), f"{where}: {type(found).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), f"{where}: {found.dtype} {found.shape}"
        assert _bits(found) == _bits(expected), f"{where}: values differ"
    elif isinstance(expected, np.ndarray | np.generic):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), f"{where}: {found.dtype} {found.shape}"
        assert found.tobytes() == expected.tobytes(), f"{where}: values differ"
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), f"{where}: keys {list(found)} instead of {list(expected)}"
        for key, value in expected.items():
            assert_identical(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple | deque):
        assert len(found) == len(expected), f"{where}: length {len(found)} instead of {len(expected)}"
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_identical(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found.hex() == expected.hex(), f"{where}: {found!r} instead of {expected!r}"
    else:
        assert found == expected, f"{where}: {found!r} instead of {expected!r}"


def _frozen(value: Any) -> Any:
    """A copy that later steps cannot change."""
    return through_a_checkpoint(value)


def _bits(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""  # its strides may be any, of which torch makes no view
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def lasting(run: Path) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """What a run leaves: every saved tensor, each step's rate, loss and rows, and every estimate."""
    newest = max((run / "checkpoints").iterdir())
    tensors = {
        f"{file.name}:{name}": value for file in newest.glob("*.safetensors") for name, value in load_file(file).items()
    }
    keep = ("step", "epoch", "start", "rows", "loss", "learning_rate")
    steps = [[record[key] for key in keep] for record in read_records(run / "steps.jsonl")]
    return tensors, steps, list(read_records(run / "alpha.jsonl"))


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)
