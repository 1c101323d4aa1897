"""Any state to JSON and tensors and back: same types, same bits, same sharing."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from tests.resume import assert_identical, through_a_checkpoint
from trainer.records.serialization import deserialize, serialize

VALUES: dict[str, Any] = {
    "none": None,
    "bool": True,
    "big integer": 2**200,
    "float": 0.1 + 0.2,
    "tiny": 5e-324,
    "nan": math.nan,
    "infinite": -math.inf,
    "negative zero": -0.0,
    "text": "α*",
    "bytes": bytes(range(256)),
    "tuple": (1, (2.5, None)),
    "list": [[], [1, "a"]],
    "set": {1, 2},
    "deque": deque([1.0, math.nan]),
    "integer keys": {0: {"step": 1}, 1: {}},
    "mixed keys": {None: 1, "a": 2, (1, 2): 3},
    "the tag as a key": {"$": "tensor", "value": 1},
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "size": torch.Size([2, 3]),
    "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
    "numpy scalar": np.float64(0.1),
    "generator state": torch.get_rng_state(),
    "python's generator": random.Random(3).getstate(),
    "scalar tensor": torch.tensor(1.5, dtype=torch.float64),
    "empty tensor": torch.empty(0, 3),
    "boolean tensor": torch.tensor([True, False]),
    "half": torch.tensor([1.0, math.nan], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_value_returns_as_it_was(name: str) -> None:
    assert_identical(through_a_checkpoint({"x": [VALUES[name]]}), {"x": [VALUES[name]]})


def test_a_bounded_deque_stays_bounded() -> None:
    assert through_a_checkpoint(deque([1, 2], maxlen=2)).maxlen == 2


def test_json_is_strict() -> None:
    form, _ = serialize({"a": [math.nan, -math.inf], "b": {1: torch.zeros(2)}})
    assert json.loads(json.dumps(form, allow_nan=False)) == form


def test_names_tell_where_tensors_stood_and_never_clash() -> None:
    _, tensors = serialize({"state": {0: {"exp_avg": torch.ones(1)}}, "a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert set(tensors) == {"state.0.exp_avg", "a.b", "a.b#2"}


def test_a_shared_tensor_is_stored_once_and_shared_again() -> None:
    shared = torch.arange(4.0)
    form, tensors = serialize({"one": shared, "other": [shared.view(4)]})
    assert len(tensors) == 1
    restored = deserialize(form, tensors)
    restored["one"].add_(1)
    assert torch.equal(restored["other"][0], shared)


def test_views_that_overlap_become_separate() -> None:
    base = torch.arange(10.0)
    value = {"whole": base, "head": base[:4], "square": base[:4].view(2, 2), "every second": base[::2]}
    form, tensors = serialize(value)
    pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    assert len(set(pointers)) == len(pointers) == 4
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert_identical(deserialize(form, tensors), value)


def test_permuted_tensors_keep_their_layout() -> None:
    permuted = torch.arange(6.0).view(2, 3).t()
    restored = through_a_checkpoint(permuted)
    assert torch.equal(restored, permuted)
    assert restored.stride() == permuted.stride()


def test_parameters_are_saved_without_their_graph() -> None:
    restored = through_a_checkpoint(torch.nn.Parameter(torch.ones(2)))
    assert type(restored) is torch.Tensor
    assert not restored.requires_grad


@pytest.mark.parametrize(
    "value", [object(), torch.ones(2).to_sparse(), lambda: 0, 1j], ids=lambda value: type(value).__name__
)
def test_what_has_no_form_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(TypeError, match=r"cannot save policy\.history\.1: no form"):
        serialize({"policy": {"history": [1, value]}})
