"""Embedding tables and bags: what is measured, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from stepsize import MeasurementError, StepSizeWorker
from tests.cases import CASES, SmallDLRM, parameters_of
from tests.measured import LOSS, assert_same, one_estimate
from tests.reverse_mode import measured_and_expected


class Bag(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 6, **options)
        self.head = nn.Linear(6, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(ids)).squeeze(1)


@pytest.mark.parametrize(("options", "message"), [({"mode": "max"}, '"max"'), ({"max_norm": 1.0}, "max_norm")])
@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_what_a_bag_cannot_be_measured_with_is_refused(options, message, tables):
    ids = torch.randint(100, (2, 4, 3))
    with pytest.raises(MeasurementError, match=message):
        one_estimate(Bag(**options), ids, torch.ones(2, 4), tables=tables)


def test_learned_weights_of_a_bag_carry_their_own_tangent():
    class Weighted(nn.Module):
        def __init__(self, *, bag: bool) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 6)
            self.scores = nn.Embedding(100, 1)
            self.bag = bag

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            weights = self.scores(ids).squeeze(-1)
            if self.bag:
                pooled = functional.embedding_bag(ids, self.table.weight, mode="sum", per_sample_weights=weights)
            else:
                pooled = (self.table(ids) * weights[..., None]).sum(1)
            return pooled.sum(1)

    ids, y = torch.randint(100, (2, 20, 3)), torch.randint(2, (2, 20)).float()
    plain, bagged = Weighted(bag=False), Weighted(bag=True)
    bagged.load_state_dict(plain.state_dict())
    assert_same(one_estimate(bagged, ids, y), one_estimate(plain, ids, y))


def test_look_ups_that_change_from_pass_to_pass_are_refused_by_rows_and_fine_densely():
    calls = itertools.count()

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(500, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table((ids + next(calls)) % 500).sum((1, 2))

    ids, y = torch.randint(500, (2, 8, 3)), torch.ones(2, 8)
    with pytest.raises(MeasurementError, match='tables="dense"'):
        one_estimate(Growing(), ids, y)
    assert one_estimate(Growing(), ids, y, tables="dense", self_check=False).slope is not None


def test_a_table_read_as_a_whole_only_later_is_refused():
    class Regularized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(500, 4)
            self.late = False

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            looked_up = self.table(ids).sum((1, 2))
            return looked_up + self.table.weight.square().sum() if self.late else looked_up

    model = Regularized()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=0.1), LOSS)
    ids, y = torch.randint(500, (8, 3)), torch.ones(8)
    with worker.around_step(ids, y, step=0):
        pass
    model.late = True
    with (
        pytest.raises(MeasurementError, match=r"'table\.weight' is read as a whole"),
        worker.around_step(ids, y, step=1),
    ):
        pass


def test_a_table_fed_by_another_optimizer_is_seen_by_both():
    """Sparse gradients into SparseAdam, everything else into AdamW: one direction over both."""
    case = CASES["dlrm_bce"]
    model = SmallDLRM().double()
    model.table.sparse = True
    rest = [p for name, p in model.named_parameters() if name != "table.weight"]
    optimizers = [torch.optim.SparseAdam([model.table.weight], lr=0.01), torch.optim.AdamW(rest, lr=0.01)]
    before = parameters_of(model)
    worker = StepSizeWorker(model, optimizers, case.loss, diagnostics="full")
    inputs, targets = case.batch(2)
    case.torch_loss(model(*inputs), targets).backward()
    with worker.around_step(*case.batch(1), train_inputs=inputs, train_targets=targets, step=0):
        for optimizer in optimizers:
            optimizer.step()
    [estimate] = worker.poll()
    assert estimate.diagnostics is not None
    moved = sum((value - before[name]).square().sum().item() for name, value in parameters_of(model).items())
    assert estimate.diagnostics.direction_norm == pytest.approx(moved**0.5, rel=1e-10)
    assert estimate.diagnostics.gradient_norm_b2 is not None


class Padded(nn.Module):
    """Sums looked-up rows, the padding's too, which is not zero: weight decay moves it, no gradient does."""

    def __init__(self, *, by_function: bool, rows: int, padding: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(rows, 6, padding_idx=padding), nn.Linear(6, 4)
        nn.init.normal_(self.table.weight)
        if by_function:
            self.weight = nn.Parameter(torch.randn(rows, 6))
        self.by_function, self.padding = by_function, padding

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.table(ids)
        if self.by_function:
            rows = rows + functional.embedding(ids, self.weight, padding_idx=self.padding)
        return self.head(rows.sum(1))


@pytest.mark.parametrize("by_function", [True, False])
@pytest.mark.parametrize("rows", [5, 500])
@pytest.mark.parametrize("tables", ["rows", "dense"])
@pytest.mark.parametrize("padding", [0, -2])
def test_a_row_of_padding_is_the_constant_that_gradients_take_it_for(by_function, rows, tables, padding):
    torch.manual_seed(0)
    ids, y = torch.randint(5, (2, 24, 3)), torch.randint(4, (2, 24))
    ids[ids == 2] = padding % rows
    estimate, slope, curvature = measured_and_expected(
        Padded(by_function=by_function, rows=rows, padding=padding).double(),
        nn.CrossEntropyLoss(),
        ((ids[1],), y[1]),
        ((ids[0],), y[0]),
        tables=tables,
    )
    assert estimate.slope == pytest.approx(slope, rel=1e-9)
    assert estimate.curvature == pytest.approx(curvature, rel=1e-9)
