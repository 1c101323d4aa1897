"""Which parameters are kept whole, which by the rows looked up, and how much memory that takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepsize.errors import MeasurementError
from stepsize.measuring.direction import Batch, Tracker
from stepsize.measuring.kept import Generators
from tests.cases import CASES, SmallDLRM


def batch_of(name: str, seed: int = 1) -> Batch:
    inputs, targets = CASES[name].batch(seed)
    return Batch(inputs=inputs, targets=targets, generators=Generators.capture(torch.device("cpu")))


def tracker_of(model: nn.Module, **options) -> Tracker:
    return Tracker(model, [torch.optim.SGD(model.parameters(), lr=0.1)], **options)


@pytest.mark.parametrize(
    ("name", "by_rows"),
    [
        ("dlrm_bce", {"table.weight": 1}),
        ("mlp_cross_entropy", {}),
        ("embedding_bags", {"mean.weight": 1, "sum.weight": 1, "padded.weight": 1}),
        ("tied_embeddings", {"position.weight": 1}),
        ("several_tables", {"left.weight": 2, "own.weight": 2}),
    ],
)
def test_tables_are_kept_by_rows_unless_they_are_read_as_a_whole(name, by_rows):
    model = CASES[name].model()
    snapshot = tracker_of(model).snapshot([batch_of(name)])
    assert {table: len(calls) for table, calls in snapshot.lookups[0].items()} == by_rows
    assert set(snapshot.values) == {parameter for parameter, _ in model.named_parameters()} - set(by_rows)
    assert tracker_of(model, tables="dense").snapshot([batch_of(name)]).lookups == ({},)


def test_the_difference_is_what_the_step_changed_and_nothing_aliases_the_model():
    model = CASES["dlrm_bce"].model()
    tracker = tracker_of(model)
    snapshot = tracker.snapshot([batch_of("dlrm_bce")])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    direction = snapshot.difference()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, value in direction.values.items():
        assert torch.equal(value, before[name])
        assert torch.equal(direction.differences[name], after[name] - before[name])
    [call] = direction.lookups[0]["table.weight"]
    ids = CASES["dlrm_bce"].batch(1)[0][1].flatten()
    assert torch.equal(call.before, before["table.weight"][ids])
    assert call.difference is not None
    assert torch.equal(call.difference, (after["table.weight"] - before["table.weight"])[ids])


def test_a_big_table_costs_its_rows_only():
    """Everything a direction holds, for a table of a hundred thousand rows and 24 · 3 look-ups."""
    model = SmallDLRM(table_rows=100_000).double()
    snapshot = tracker_of(model).snapshot([batch_of("dlrm_bce")])
    held = sum(tensor.numel() for tensor in snapshot.difference().tensors())
    dense = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("table"))
    assert held <= 2 * dense + 2 * 24 * 3 * 8 + 24 * 3


def test_a_table_smaller_than_its_look_ups_is_kept_whole():
    model = SmallDLRM(table_rows=50).double()
    (dense, ids), targets = CASES["dlrm_bce"].batch(1)
    few = Batch(inputs=(dense, ids % 50), targets=targets, generators=Generators.capture(torch.device("cpu")))
    assert "table.weight" in tracker_of(model).snapshot([few]).values


def test_later_recordings_stop_at_the_last_look_up():
    model = CASES["dlrm_bce"].model()
    calls = []
    for name in ("bottom", "top"):
        model.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    tracker = tracker_of(model)
    tracker.snapshot([batch_of("dlrm_bce")])
    assert "top" in calls, "the first pass is whole, to learn who reads the table"
    calls.clear()
    tracker.snapshot([batch_of("dlrm_bce"), batch_of("dlrm_bce", seed=2)])
    assert calls == ["bottom", "bottom"]


def test_frozen_parameters_and_those_of_no_optimizer_do_not_move():
    model = CASES["dlrm_bce"].model()
    model.get_parameter("bottom.0.weight").requires_grad_(False)
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if not name.startswith("top.2")], lr=0.1)
    snapshot = Tracker(model, [optimizer]).snapshot([batch_of("dlrm_bce")])
    kept = {*snapshot.values, *snapshot.lookups[0]}
    everything = {name for name, _ in model.named_parameters()}
    assert everything - kept == {"bottom.0.weight", "top.2.weight", "top.2.bias"}


def test_groups_are_numbered_across_optimizers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    first = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[1].parameters()}], lr=0.1)
    second = torch.optim.Adam(model[2].parameters())
    x = torch.randn(4, 2)
    batch = Batch(inputs=(x,), targets=x[:, :1], generators=Generators.capture(torch.device("cpu")))
    groups = Tracker(model, [first, second]).snapshot([batch]).groups
    assert {name: groups[name] for name in ("0.weight", "1.bias", "2.weight")} == {
        "0.weight": 0,
        "1.bias": 1,
        "2.weight": 2,
    }


def test_nothing_to_move_is_an_error():
    case = CASES["mlp_cross_entropy"]
    with pytest.raises(MeasurementError, match="moves none"):
        Tracker(case.model(), [torch.optim.SGD(case.model().parameters())]).snapshot([batch_of(case.name)])
