"""One run: what is evaluated, that evaluating changes nothing, and how a run that fails is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from stepsize.suite import TASKS
from stepsize.suite import training as training_module
from stepsize.suite.methods import METHODS
from stepsize.suite.problems import Problem, draw
from stepsize.suite.problems.models import SmallConvolution
from stepsize.suite.training import evaluation_steps, mean_loss, renew_statistics, run
from tests.finished_runs import TINY

CONVOLUTION = replace(TASKS["digits-convolution"], rows=256, held=64, epochs=2)


def without_clock(record: dict) -> dict:
    for evaluation in record["evaluations"]:
        evaluation.pop("seconds")
    return record


@pytest.mark.parametrize("name", list(METHODS))
def test_a_run_learns_and_comes_out_the_same_again(name: str) -> None:
    rate = {"cosine": 0.3, "constant+average": 0.3, "auto": 1e-6}.get(name, (METHODS[name].rates or (0.0,))[0])
    problem = replace(TINY, epochs=6)
    first, again = (without_clock(run(draw(problem, 0), METHODS[name], rate)) for _ in range(2))
    assert first == again
    assert not first["diverged"]
    assert first["error"] is None
    assert [evaluation["step"] for evaluation in first["evaluations"]] == evaluation_steps(60)
    told = [evaluation for evaluation in first["evaluations"] if evaluation["test"] is not None]
    lowest = [evaluation["validation"][evaluation["weights"]] for evaluation in told]
    assert lowest == sorted(lowest, reverse=True)
    everything = [loss for one in first["evaluations"] for loss in one["validation"].values()]
    assert lowest[-1] == min(everything)
    assert set(first["evaluations"][0]["validation"]) == set(METHODS[name].weights)
    assert lowest[-1] < lowest[0]


@pytest.mark.parametrize("name", ["cosine", "constant+average", "auto", "dog", "schedule-free"])
def test_evaluating_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_weights(evaluations: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(training_module, "EVALUATIONS", evaluations)
        problem = draw(CONVOLUTION, 0)
        run(problem, METHODS[name], 0.01)
        return {
            key: value
            for key, value in problem.model.state_dict().items()
            if "running" not in key and "num_batches" not in key
        }

    often, once = last_weights(16), last_weights(1)
    for key in once:
        if name == "schedule-free":  # goes to its average and back, which rounds
            torch.testing.assert_close(often[key], once[key], atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(often[key], once[key]), key


def test_evaluations_are_spread_over_the_run() -> None:
    assert evaluation_steps(320) == list(range(0, 321, 20))
    assert evaluation_steps(5) == [0, 1, 2, 3, 4, 5]


def test_a_run_that_diverges_ends_and_keeps_what_it_had() -> None:
    problem = replace(TASKS["friedman2-sgd"], rows=320, held=64, epochs=2)
    record = run(draw(problem, 0), METHODS["cosine"], 1e12)
    assert record["diverged"]
    assert record["steps"] < problem.steps
    told = [evaluation for evaluation in record["evaluations"] if evaluation["test"] is not None]
    assert all(math.isfinite(evaluation["test"]) for evaluation in told)
    assert told[0]["step"] == 0


def test_a_method_that_raises_is_told_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(TINY, 0)
    pace, average = METHODS["cosine"].begin(problem, 0.1)
    failing = replace(METHODS["cosine"], begin=lambda _problem, _rate: (pace, average))
    monkeypatch.setattr(pace.optimizer, "step", fail_after(3, pace.optimizer.step))
    record = run(problem, failing, 0.1)
    assert record["error"] == "RuntimeError: no more"
    assert (record["diverged"], record["steps"]) == (True, 3)


def fail_after(steps: int, step):
    taken = iter(range(steps))

    def stepped() -> None:
        if next(taken, None) is None:
            raise RuntimeError("no more")
        step()

    return stepped


def test_the_loss_is_the_mean_over_all_rows_whatever_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(TINY, 0)
    inputs, targets = problem.test.inputs[0], problem.test.targets
    expected = functional.cross_entropy(problem.model(inputs), targets).item()
    monkeypatch.setattr(training_module, "ROWS_AT_ONCE", 23)
    assert mean_loss(problem.model, problem.loss, problem.test) == pytest.approx(expected, rel=1e-6)


def test_statistics_are_those_of_the_weights_that_are_evaluated() -> None:
    problem: Problem = draw(CONVOLUTION, 0)
    model = problem.model
    assert isinstance(model, SmallConvolution)
    convolution, norm = model.body[0], model.body[1]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    renew_statistics(model, problem.train)
    with torch.no_grad():
        convolved = convolution(problem.train.inputs[0].view(-1, 1, 8, 8))
    torch.testing.assert_close(norm.running_mean, convolved.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert norm.momentum == 0.1
