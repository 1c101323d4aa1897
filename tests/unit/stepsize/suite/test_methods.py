"""Schedules and averages against their formulas; peers at what their authors document."""

from __future__ import annotations

import importlib
import math
from importlib.metadata import metadata

import pytest
import torch

from stepsize.suite import SuiteError
from stepsize.suite import methods as methods_module
from stepsize.suite.methods import METHODS, ExponentialAverage, Scheduled, annealed, cosine, make_optimizer, warmed_up
from stepsize.suite.problems import draw
from tests.finished_runs import TINY

PEERS = [
    ("schedule-free", "schedulefree", "AdamWScheduleFree", {"warmup_steps", "scheduled_lr"}),
    ("prodigy", "prodigyopt", "Prodigy", set()),
    ("d-adaptation", "dadaptation", "DAdaptAdam", set()),
    ("dog", "dog", "DoG", set()),
]
DOCUMENTED = {
    "schedulefree": ("Using learning rate warmup is recommended", "no need to use a learning rate scheduler"),
    "prodigyopt": ("We recommend using `lr=1.`", "either using no scheduler or using cosine annealing"),
    "dadaptation": ("Set the LR parameter to 1.0", "same learning rate scheduler you would normally use"),
    "dog-optimizer": ("must be combined with iterate averaging", "default configuration should work well"),
}


@pytest.mark.parametrize(("name", "module", "optimizer", "recommended"), PEERS)
def test_a_peer_has_its_packages_defaults(name: str, module: str, optimizer: str, recommended: set[str]) -> None:
    """All but what is documented as recommended: Schedule-Free's warm-up."""
    problem = draw(TINY, 0)
    [rate] = METHODS[name].rates
    pace, _ = METHODS[name].begin(problem, rate)
    plain = getattr(importlib.import_module(module), optimizer)(problem.model.parameters())
    [ours], [theirs] = pace.optimizer.param_groups, plain.param_groups
    differing = {key for key in theirs if key != "params" and ours[key] != theirs[key]}
    assert type(pace.optimizer) is type(plain)
    assert differing <= recommended
    assert ours["lr"] == theirs["lr"]


@pytest.mark.parametrize("distribution", DOCUMENTED)
def test_what_is_done_with_a_peer_is_what_its_documentation_says(distribution: str) -> None:
    text = " ".join(str(metadata(distribution).json["description"]).split())
    for sentence in DOCUMENTED[distribution]:
        assert sentence in text


def test_peers_follow_the_schedule_that_is_recommended() -> None:
    problem = draw(TINY, 0)
    paces = {name: METHODS[name].begin(problem, 1.0)[0] for name, *_ in PEERS}
    factors = {name: pace.factor for name, pace in paces.items() if isinstance(pace, Scheduled)}
    assert factors["schedule-free"] is None
    assert factors["dog"] is None
    assert paces["schedule-free"].optimizer.param_groups[0]["warmup_steps"] == 1  # a twentieth of 20 steps
    prodigy, d_adaptation = factors["prodigy"], factors["d-adaptation"]
    assert prodigy is not None
    assert d_adaptation is not None
    assert [prodigy(step) for step in (0, 10)] == [1.0, pytest.approx(0.5)]
    assert [d_adaptation(step) for step in range(20)] == [cosine(20)(step) for step in range(20)]


def test_prodigys_annealing_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for step in range(30):
        assert annealed(30)(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_cosine_rises_over_a_twentieth_and_falls_to_nothing() -> None:
    factor = cosine(200)
    assert [factor(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert factor(105) == pytest.approx(0.5)
    assert factor(199) == pytest.approx(0.5 * (1 + math.cos(math.pi * 189 / 190)))
    assert [warmed_up(200)(step) for step in (0, 9, 150)] == [0.1, 1.0, 1.0]


def test_the_average_is_a_plain_mean_first_and_an_exponential_one_then() -> None:
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, expected = ExponentialAverage(model), 0.0
    for number in range(1, 251):
        with torch.no_grad():
            model.weight.fill_(math.sin(number))
        average.step()
        expected += max(0.01, 1 / number) * (math.sin(number) - expected)
        if number <= 100:
            assert expected == pytest.approx(sum(math.sin(n) for n in range(1, number + 1)) / number)
        assert next(average.averaged_model.parameters()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "nadamw"])
def test_the_optimizers_are_the_ones_they_are_called(name: methods_module.OptimizerName) -> None:
    optimizer = make_optimizer(name, [torch.zeros(1, requires_grad=True)], 0.1)
    [group] = optimizer.param_groups
    assert type(optimizer).__name__ == {"adamw": "AdamW", "nadamw": "NAdam"}.get(name, "SGD")
    assert group.get("momentum", 0) == (0.9 if name == "momentum" else 0)
    assert group["weight_decay"] == (0.01 if name.endswith("adamw") else 0)
    assert name != "nadamw" or group["decoupled_weight_decay"]


def test_the_fixed_method_is_nadamw_in_every_task() -> None:
    pace, average = METHODS["fixed"].begin(draw(TINY, 0), 1e-3)  # a task of SGD's
    assert type(pace.optimizer).__name__ == "NAdam"
    assert average is None


def test_a_peer_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(methods_module, "import_module", absent)
    with pytest.raises(SuiteError, match=r"dog needs dog-optimizer; pip install 'alphastream\[suite\]'"):
        METHODS["dog"].begin(draw(TINY, 0), 1.0)
