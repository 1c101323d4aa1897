"""Weight averages against means taken by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.learner.averaging import WeightAverage, build_average
from trainer.learner.config import OptimizerConfig


def walk(model: nn.Linear, average: WeightAverage, steps: range) -> list[torch.Tensor]:
    """Random steps; returns the weight after each."""
    visited = []
    for step in steps:
        with torch.no_grad():
            model.weight.copy_(torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(step)))
        average.update()
        visited.append(model.weight.detach().clone())
    return visited


def averaged(model: nn.Linear, average: WeightAverage) -> torch.Tensor:
    with average.applied():
        return model.weight.detach().clone()


def test_polyak_is_the_mean_of_all_iterates() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, "polyak")
    visited = walk(model, average, range(20))
    torch.testing.assert_close(averaged(model, average), torch.stack(visited).mean(0))


def test_ema_is_a_mean_at_first_and_then_forgets() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, "ema", decay=0.8)
    visited = walk(model, average, range(12))
    expected = torch.stack(visited[:5]).mean(0)
    for weight in visited[5:]:
        expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(averaged(model, average), expected)


def test_applying_exchanges_without_copies_and_puts_back_even_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, "polyak")
    walk(model, average, range(3))
    weight, pointer = model.weight.detach().clone(), model.weight.data_ptr()
    with average.applied():
        assert model.weight.data_ptr() != pointer
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert model.weight.data_ptr() == pointer
    assert torch.equal(model.weight, weight)


def test_tied_parameters_are_exchanged_once() -> None:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    average = WeightAverage(nn.Sequential(one, other), "polyak")
    for value in (2.0, 4.0):
        nn.init.constant_(one.weight, value)
        average.update()
    with average.applied():
        assert torch.equal(other.weight, torch.full((3, 3), 3.0))
    assert torch.equal(other.weight, torch.full((3, 3), 4.0))


def test_updating_while_applied_is_a_broken_invariant() -> None:
    average = WeightAverage(nn.Linear(1, 1), "polyak")
    with average.applied(), pytest.raises(AssertionError, match="swapped out"):
        average.update()


def test_built_as_configured() -> None:
    model = nn.Linear(2, 1)
    assert build_average(OptimizerConfig(), model) is None
    average = build_average(OptimizerConfig(average="ema", average_decay=0.5), model)
    assert average is not None
    assert set(average.state_dict()) == {"weight", "bias", "#updates"}
