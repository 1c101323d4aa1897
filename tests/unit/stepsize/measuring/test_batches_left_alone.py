"""Models and losses that write into what they are given: the batch is the caller's, who trains on it next."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stepsize import AutogradLoss, MeasurementError, Outcome, StepSizeWorker


@dataclass
class Rows:
    x: Tensor


class Shifted(nn.Module):
    """x (R, 6) → (R, 4), normalized in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def of(self, x: Tensor) -> Tensor:
        x -= 0.5
        x[:, 0] = 1
        return self.b(self.a(x).tanh())

    def forward(self, x: Any) -> Tensor:
        return self.of(x)


class Mapped(Shifted):
    """Leaves what it found in the mapping that it is given."""

    def forward(self, x: dict[str, Any]) -> Tensor:
        x["calls"] = x.get("calls", 0) + 1
        return self.of(x["x"]) * x["calls"]


class Listed(Shifted):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.of(x.pop())


class Recorded(Shifted):
    def forward(self, x: Rows) -> Tensor:
        x.x = x.x * 2
        return self.of(x.x)


class Tokens(Shifted):
    """Hides some of its tokens in place and looks the rest up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 6)

    def forward(self, x: Tensor) -> Tensor:
        x[torch.rand(x.shape) < 0.5] = 0
        return self.of(self.table(x).mean(1))


KINDS: dict[type[Shifted], Callable[[Tensor], Any]] = {
    Shifted: lambda x: x,
    Tokens: lambda x: x.abs().mul(300).long().clamp(max=999),
    Mapped: lambda x: {"x": x},
    Listed: lambda x: [x],
    Recorded: Rows,
}


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z, y, reduction="none")


def in_place(z: Tensor, y: Tensor) -> Tensor:
    """Masks a class and moves the labels, both in place."""
    z[:, 3] = -1e9
    y.add_(1).remainder_(3)
    return functional.cross_entropy(z, y, reduction="none")


def trained(kind: type[Shifted], function: Any, **options: Any) -> tuple[Tensor, list[Any]]:
    """The weights after five steps and, where measured, the estimates."""
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    worker = StepSizeWorker(model, optimizer, AutogradLoss(function), **options) if options else None
    g, estimates = torch.Generator().manual_seed(1), []
    batches = [(KINDS[kind](torch.randn(24, 6, generator=g)), torch.randint(3, (24,), generator=g)) for _ in range(6)]
    for step, ((x2, y2), (x1, y1)) in enumerate(itertools.pairwise(batches)):
        optimizer.zero_grad()
        function(model(x2), y2).mean().backward()
        if worker is not None:
            worker.before_step((x1,), y1, step=step)
        optimizer.step()
        if worker is not None:
            worker.after_step()
            estimates += worker.poll()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), estimates


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("function", [cross_entropy, in_place])
@pytest.mark.parametrize("options", [{"self_check": True}, {"self_check": False}, {"method": "secant"}])
def test_the_batch_is_as_it_was(kind, function, options):
    weights, _ = trained(kind, function)
    measured, estimates = trained(kind, function, **options)
    assert torch.equal(measured, weights)
    assert {estimate.outcome for estimate in estimates} <= {Outcome.OK, Outcome.ASCENT}


def test_the_numbers_are_those_of_one_pass():
    """At θ0, by a backward pass over a copy of B1."""
    torch.manual_seed(0)
    model, (x2, x1), (y2, y1) = Shifted().double(), torch.randn(2, 24, 6).double(), torch.randint(4, (2, 24))
    cross_entropy(model(x2), y2).mean().backward()
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    gradient = torch.autograd.grad(cross_entropy(model(x1.clone()), y1).mean(), parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    worker = StepSizeWorker(model, optimizer, nn.CrossEntropyLoss())
    with worker.around_step(x1, y1, step=0):
        optimizer.step()
    changes = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
    expected = sum((change * g).sum().item() for change, g in zip(changes, gradient, strict=True))
    assert worker.poll()[0].slope == pytest.approx(expected, rel=1e-12)


def test_a_loss_without_a_second_derivative_says_what_to_do():
    def connectionist(z: Tensor, y: Tensor) -> Tensor:
        paths = functional.log_softmax(z.reshape(len(z), 2, 2), 2).transpose(0, 1)
        rows = torch.full((len(z),), 2), torch.ones(len(z), dtype=torch.long)
        return functional.ctc_loss(paths, torch.ones(len(z), 1, dtype=torch.long), *rows, reduction="none")

    with pytest.raises(MeasurementError, match=r"cannot be differentiated twice in the logits .*ctc_loss"):
        trained(Shifted, connectionist, self_check=True)


def test_a_first_batch_without_labels_that_count_is_no_mismatch():
    """Its loss is NaN, in torch too; the check is made on the next one."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, nn.CrossEntropyLoss())
    outcomes = []
    for step, label in enumerate((-100, 1)):
        x = torch.randn(24, 6)
        model(x).square().mean().backward()
        with worker.around_step(x, torch.full((24,), label), step=step):
            optimizer.step()
        outcomes.append(worker.poll()[0].outcome)
    assert outcomes[0] is Outcome.NONFINITE
    assert outcomes[1] in (Outcome.OK, Outcome.ASCENT)
