"""Models with state beside their buffers: measuring changes nothing in training, or says why it cannot."""

from __future__ import annotations

import itertools
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepsize import AutogradLoss, MeasurementError, StepSizeWorker

CE = nn.CrossEntropyLoss()


class Stateful(nn.Module):
    """x (R, 6) → (R, 4); subclasses change something in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.begin()

    def begin(self) -> None: ...

    def factor(self, h: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        return self.b(h * self.factor(h))


class Counter(Stateful):
    def begin(self) -> None:
        self.calls = 0

    def factor(self, h: Tensor) -> Any:
        self.calls += 1
        return 1 + 1 / self.calls


class Containers(Stateful):
    def begin(self) -> None:
        self.seen, self.recent, self.by_name = [], deque(maxlen=3), {"sums": [0.0]}

    def factor(self, h: Tensor) -> Any:
        self.seen.append(1)
        self.recent.append(h.detach().mean())
        self.by_name["sums"][0] += 0.125
        self.by_name[str(len(self.seen))] = []
        return 1 + 0.1 * len(self.seen) + sum(self.recent) + self.by_name["sums"][0]


class AverageInAnAttribute(Stateful):
    def begin(self) -> None:
        self.average = torch.zeros(8)

    def factor(self, h: Tensor) -> Any:
        self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return 1 + self.average


class Statistics:
    """An object of the user's own, beside the model."""

    def __init__(self) -> None:
        self.count, self.generator = 0, np.random.default_rng(0)


class Objects(Stateful):
    def begin(self) -> None:
        self.own, self.space = Statistics(), SimpleNamespace(total=0.0)

    def factor(self, h: Tensor) -> Any:
        self.own.count += 1
        self.space.total += 0.5
        return 1 + self.own.generator.random() + 0.1 * self.own.count + self.space.total


class Arrays(Stateful):
    def begin(self) -> None:
        self.usage = np.zeros(8)
        self.tables = {"fixed": np.arange(8.0)}
        self.tables["fixed"].flags.writeable = False

    def factor(self, h: Tensor) -> Any:
        self.usage += h.detach().mean(0).numpy()
        return 1 + torch.from_numpy(self.usage + 0.1 * self.tables["fixed"]).float()


class CarriedOver(Stateful):
    def begin(self) -> None:
        self.state = None

    def factor(self, h: Tensor) -> Any:
        carried = h.detach().mean(0) if self.state is None else 0.5 * self.state + h.detach().mean(0)
        self.state = carried
        return 1 + carried


class PythonRandom(Stateful):
    def factor(self, h: Tensor) -> Any:
        return 1 + random.random()


class NumpyRandom(Stateful):
    def factor(self, h: Tensor) -> Any:
        return 1 + np.random.rand()  # noqa: NPY002 (what users have)


class OwnGenerators(Stateful):
    def begin(self) -> None:
        self.torch, self.python = torch.Generator().manual_seed(0), random.Random(0)
        self.numpy = [np.random.default_rng(0), np.random.RandomState(0)]

    def factor(self, h: Tensor) -> Any:
        noise = self.python.random() + self.numpy[0].random() + self.numpy[1].rand()
        return 1 + noise * torch.rand(8, generator=self.torch)


class Recurrent(Stateful):
    """nn.LSTM keeps its weights in a list as well, which torch.func.functional_call leaves changed."""

    def begin(self) -> None:
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def factor(self, h: Tensor) -> Any:
        return self.lstm(h[:, None])[0][:, 0]


MODELS = [
    Counter,
    Arrays,
    Containers,
    Objects,
    AverageInAnAttribute,
    CarriedOver,
    PythonRandom,
    NumpyRandom,
    OwnGenerators,
    Recurrent,
]


def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def trained(model_class: type[Stateful], *, measured: bool, **options: Any) -> tuple[list[float], Tensor]:
    """Losses of 12 steps and the weights after them."""
    seeded()
    model = model_class()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    worker = StepSizeWorker(model, optimizer, CE, **options) if measured else None
    g, losses = torch.Generator().manual_seed(1), []
    batches = [(torch.randn(24, 6, generator=g), torch.randint(4, (24,), generator=g)) for _ in range(13)]
    for step, ((x2, y2), (x1, y1)) in enumerate(itertools.pairwise(batches)):
        optimizer.zero_grad()
        loss = CE(model(x2), y2)
        loss.backward()
        losses.append(loss.item())
        if worker is not None:
            worker.before_step(x1, y1, train_inputs=x2, train_targets=y2, step=step)
        optimizer.step()
        if worker is not None:
            worker.after_step()
            assert worker.poll()[0].slope is not None
    return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "secant"}, {"estimators": ("unbiased", "biased"), "diagnostics": "full"}],
    ids=["jvp", "secant", "all"],
)
def test_training_is_bit_for_bit_what_it_is_without(model_class, options):
    losses, weights = trained(model_class, measured=False)
    measured_losses, measured_weights = trained(model_class, measured=True, **options)
    assert measured_losses == losses
    assert torch.equal(measured_weights, weights)
    assert trained(model_class, measured=False)[0] == losses, "the run itself is reproducible"


def one_step(model: nn.Module, **options: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, options.pop("loss", CE), **options)
    x, y = torch.randn(2, 24, 6), torch.randint(4, (2, 24))
    CE(model(x[0]), y[0]).backward()
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()


def test_state_that_cannot_be_found_is_noticed_by_the_self_check():
    calls = itertools.count(1)

    class ByAClosure(Stateful):
        def factor(self, h: Tensor) -> Any:
            return 1 / next(calls)

    with pytest.raises(MeasurementError, match=r"self-check: two passes .* hidden state"):
        one_step(ByAClosure())
    one_step(ByAClosure(), self_check=False)


def test_a_generator_that_cannot_be_found_is_noticed_by_the_self_check():
    generator = torch.Generator().manual_seed(0)

    class NoisyByAClosure(Stateful):
        def factor(self, h: Tensor) -> Any:
            return 1 + torch.rand(8, generator=generator)

    with pytest.raises(MeasurementError, match=r"draws random numbers that are not kept"):
        one_step(NoisyByAClosure())


def test_a_tensor_too_large_to_copy_is_asked_to_be_a_buffer():
    class Bank(Stateful):
        def begin(self) -> None:
            self.bank = torch.zeros(70_000)

        def factor(self, h: Tensor) -> Any:
            self.bank[:8] += h.detach().mean(0)
            return 1 + self.bank[:8]

    with pytest.raises(MeasurementError, match=r"'bank' \(70,000 numbers\).*register_buffer"):
        one_step(Bank())


@pytest.mark.parametrize("self_check", [True, False])
def test_a_parameter_that_forward_writes_to_is_asked_to_be_a_buffer(self_check):
    """A second network that follows the first, as in self-supervised learning."""

    class Followed(Stateful):
        def begin(self) -> None:
            self.slow = nn.Linear(8, 4).requires_grad_(False)

        def factor(self, h: Tensor) -> Any:
            with torch.no_grad():
                self.slow.weight.mul_(0.9).add_(self.b.weight, alpha=0.1)
            return 1 + self.slow(h).mean()

    with pytest.raises(MeasurementError, match=r"'slow\.weight' in its forward pass.*register_buffer"):
        one_step(Followed(), self_check=self_check)


@pytest.mark.parametrize("plainly", [True, False])
def test_a_parameter_that_forward_writes_to_is_put_back(plainly):
    class Clamped(Stateful):
        def factor(self, h: Tensor) -> Any:
            with torch.no_grad():
                (self.b.weight if plainly else self.b.weight.data).add_(0.125)
            return 1

    model = Clamped()
    worker = StepSizeWorker(model, torch.optim.SGD(model.parameters(), lr=0.1), CE)
    before = model.b.weight.detach().clone()
    with pytest.raises(MeasurementError, match=r"'b\.weight' in its forward pass"):
        worker.before_step(torch.randn(24, 6), torch.zeros(24, dtype=torch.long), step=0)
    assert torch.equal(model.b.weight, before)


def test_weights_that_are_nan_are_not_taken_for_written():
    model = Counter()
    with torch.no_grad():
        model.b.weight[0, 0] = torch.nan
    one_step(model)


def test_a_loss_that_draws_and_counts_leaves_both_as_they_were():
    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("average", torch.zeros(()))

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            self.average += z.detach().mean()  # pyright: ignore[reportOperatorIssue]
            return nn.functional.cross_entropy(z * (1 + 0.0 * torch.rand(4)), y, reduction="none")

    sampled = Sampled()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = Counter()
    x, y = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 24, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CE(model(x[0]), y[0]).backward()
    torch.set_rng_state(state)
    worker = StepSizeWorker(model, optimizer, AutogradLoss(sampled))
    with worker.around_step(x[1], y[1], step=0):
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert (sampled.calls, float(sampled.average), model.calls) == (0, 0.0, 1)
