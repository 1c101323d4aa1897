"""The AlgoPerf submission runs in a harness of that interface, measures what is trained, refuses what cannot work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stepsize import BCEWithLogits, CrossEntropy, MeasurementError, SquaredError
from tests.algoperf_harness import (
    Batch,
    Clicks,
    ForwardPassMode,
    LossType,
    PartsInAList,
    Prices,
    Tokens,
    TrainingCompleteError,
    Workload,
    run_submission,
    submission_module,
)
from trainer.learner import build_optimizer
from trainer.learner.config import OptimizerConfig

SIGNATURES = {
    "init_optimizer_state": "workload model_params model_state hyperparameters rng",
    "update_params": "workload current_param_container current_params_types model_state hyperparameters batch "
    "loss_type optimizer_state eval_results global_step rng train_state",
    "prepare_for_eval": "workload current_param_container current_params_types model_state hyperparameters "
    "loss_type optimizer_state eval_results global_step rng",
    "data_selection": "workload input_queue optimizer_state current_param_container model_state hyperparameters "
    "global_step rng",
    "get_batch_size": "workload_name",
}
"""Of algoperf/spec.py."""
TUNED_RATES = (3e-2, 1e-1, 3e-1)
"""Of seven from 1e-3 to 1, the best of each workload and its neighbours."""


@pytest.fixture(scope="module")
def submission() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield submission_module(patch)


class Logger:
    """What a workload's metrics logger is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def append_scalar_metrics(self, metrics: dict[str, float], global_step: int) -> None:
        assert global_step == len(self.told)
        self.told.append(metrics)


def train(
    workload: Workload, model: nn.Module, optimizer: Optimizer, rates: Callable[[int], float], *, steps: int
) -> None:
    """A plain loop over the batches that a submission is given."""
    queue = workload.input_queue(0)
    for step in range(steps):
        batch = next(queue)
        optimizer.param_groups[0]["lr"] = rates(step)
        optimizer.zero_grad()
        logits, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, None, update_batch_norm=True)
        found = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        (found["summed"] / found["n_valid_examples"]).backward()
        optimizer.step()


def tuned_baseline(workload: Workload) -> float:
    """The best loss of NAdamW with warm-up and cosine."""

    def cosine(step: int) -> float:
        warmup = workload.step_hint // 50
        done = (step - warmup) / (workload.step_hint - warmup)
        return step / warmup + 1e-10 if step < warmup else 0.5 * (1 + math.cos(math.pi * done))

    losses = []
    for peak in TUNED_RATES:
        model, _ = workload.init_model_fn(0)
        optimizer = build_optimizer(OptimizerConfig(name="nadamw", table="dense"), model)
        train(workload, model, optimizer, lambda step, peak=peak: peak * cosine(step), steps=workload.step_hint)
        losses.append(workload.evaluate(model))
    return min(losses)


@pytest.mark.parametrize("kind", [Clicks, Tokens, Prices])
def test_it_reaches_the_loss_of_a_tuned_baseline_without_hyperparameters(submission: Any, kind: type[Workload]) -> None:
    workload = kind()
    model, _, steps = run_submission(submission, workload)
    assert steps == workload.step_hint
    assert workload.evaluate(model) < 1.02 * tuned_baseline(workload)


@pytest.mark.parametrize("name", SIGNATURES)
def test_its_functions_take_what_the_harness_gives(submission: Any, name: str) -> None:
    assert list(inspect.signature(getattr(submission, name)).parameters) == SIGNATURES[name].split()


def test_it_trains_as_a_plain_loop_does_at_its_rates(submission: Any) -> None:
    """Measuring leaves weights, buffers, dropout masks and the order of the rows alone."""
    workload = Clicks()
    workload.metrics_logger = Logger()
    model, _, steps = run_submission(submission, workload, steps=25)
    rates = [metrics["learning_rate"] for metrics in workload.metrics_logger.told]
    assert steps == len(rates) == 25
    assert rates[-1] > 1e3 * rates[0]
    plain, _ = workload.init_model_fn(0)
    optimizer = submission.init_optimizer_state(workload, plain, None, None, 0)["optimizer"]
    train(workload, plain, optimizer, lambda step: rates[step], steps=25)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_every_batch_probes_the_step_before_it_and_is_trained_on_once(submission: Any) -> None:
    workload = Prices()
    model, _ = workload.init_model_fn(0)
    state = submission.init_optimizer_state(workload, model, None, None, 0)
    batches = [
        {"inputs": torch.full((4, 8), float(index)), "targets": torch.full((4, 1), index / 8)} for index in range(5)
    ]
    queue, seen, measured = iter(batches), [], []
    controller, around_step = state["rate"]._controller, state["rate"]._controller.around_step

    def probed(inputs: Any, targets: Tensor, *, step: int) -> Any:
        measured.append((float(inputs[0]["inputs"][0, 0]), float(targets[0, 0]), step))
        return around_step(inputs, targets, step=step)

    controller.around_step = probed
    for step in range(4):
        chosen = submission.data_selection(workload, queue, state, model, None, None, step, 0)
        seen.append((float(chosen["inputs"][0, 0]), float(chosen[submission.PROBE]["inputs"][0, 0])))
        again = {key: value for key, value in chosen.items() if key != submission.PROBE}
        state, _, _ = update(submission, workload, model, state, chosen, step=step)
        assert again.keys() == batches[step].keys()
        assert all(again[key] is batches[step][key] for key in again)
    assert seen == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    assert measured == [(1.0, 1 / 8, 0), (2.0, 2 / 8, 1), (3.0, 3 / 8, 2), (4.0, 4 / 8, 3)]


def update(
    submission: Any, workload: Workload, model: nn.Module, state: dict[str, Any], batch: Batch, *, step: int
) -> Any:
    return submission.update_params(
        workload, model, None, None, None, batch, workload.loss_type, state, [], step, 0, train_state=None
    )


def per_valid(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


@pytest.mark.parametrize("kind", [Clicks, Tokens, Prices])
def test_what_is_measured_is_what_is_trained(submission: Any, kind: type[Workload]) -> None:
    """Loss, slope and curvature by the workload's masked loss, against the closed forms of what the mask leaves."""
    workload = kind()
    workload.dtype = torch.float64
    batch = next(workload.input_queue(3))
    model, _ = workload.init_model_fn(0)
    state = submission.init_optimizer_state(workload, model, None, None, 0)
    loss, packed = state["rate"]._controller.worker.loss, state["rate"]._targets.packed(batch)
    shape = (16, 12, 11) if kind is Tokens else (64, 1)
    z, t = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    labels, mask = batch["targets"], batch.get("weights", torch.ones(64))
    closed = {Clicks: BCEWithLogits(), Tokens: CrossEntropy(), Prices: SquaredError()}[kind]
    flat, along = z.reshape(-1, shape[-1]), t.reshape(-1, shape[-1])
    expected = labels.reshape(-1) if kind is Tokens else labels
    found = workload.loss_fn(labels, z.clone(), batch.get("weights"))
    trained = found["summed"] / found["n_valid_examples"]
    for mine, theirs in (
        (loss.per_sample(z, packed), closed.per_sample(flat, expected)),
        (loss.slope(z, packed, t), closed.slope(flat, expected, along)),
        (loss.curvature(z, packed, t), closed.curvature(flat, expected, along)),
    ):
        assert mine.shape == shape[:1]
        torch.testing.assert_close(mine.mean(), per_valid(theirs, mask.reshape(-1)), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.per_sample(z, packed).mean(), trained, rtol=1e-12, atol=0)


def rates_of(submission: Any, model: Callable[[], nn.Module], *, steps: int = 8) -> list[float]:
    """The rates of the first steps, the first few of which are found by measuring."""
    workload = Clicks()
    workload.build, workload.metrics_logger = model, Logger()  # pyright: ignore[reportAttributeAccessIssue]
    run_submission(submission, workload, steps=steps)
    return [metrics["learning_rate"] for metrics in workload.metrics_logger.told]


def test_weights_in_a_plain_list_are_measured_as_attributes_are(submission: Any) -> None:
    """AlgoPerf's DLRM reads its table so, and other weights must be able to take their place."""
    found = rates_of(submission, lambda: PartsInAList(8))
    assert found == rates_of(submission, lambda: PartsInAList(8, plain=False))
    assert found[-1] > 1e2 * found[0]


def test_after_a_measurement_a_plain_list_holds_the_parameters_again(submission: Any) -> None:
    model, _, _ = run_submission(submission, _with_parts(), steps=3)
    assert all(part is getattr(model, f"part_{index}") for index, part in enumerate(model.parts))  # pyright: ignore[reportArgumentType]


def _with_parts() -> Workload:
    workload = Clicks()
    workload.build = lambda: PartsInAList(8)
    return workload


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    "wrap",
    [nn.parallel.DistributedDataParallel, nn.DataParallel, lambda model: torch.compile(model, backend="eager")],
    ids=["ddp", "data-parallel", "compiled"],
)
def test_wrapped_models_are_measured_as_what_they_wrap(submission: Any, wrap: Any) -> None:
    plain = rates_of(submission, lambda: PartsInAList(8), steps=4)
    assert rates_of(submission, lambda: wrap(PartsInAList(8)), steps=4) == plain


def test_a_compiled_loss_function_is_measured(submission: Any) -> None:
    """Compiled functions cannot be differentiated twice; the harness compiles the losses of some workloads."""

    def rates(compiled: bool) -> list[float]:
        workload = Prices()
        workload.metrics_logger = Logger()
        if compiled:
            workload.loss_fn = torch.compile(workload.loss_fn, backend="aot_eager")
        run_submission(submission, workload, steps=4)
        return [metrics["learning_rate"] for metrics in workload.metrics_logger.told]

    assert rates(True) == pytest.approx(rates(False), rel=1e-4)


def test_the_harness_can_restart_it_from_a_checkpoint(submission: Any) -> None:
    workload = Prices()
    workload.step_hint = 90
    model, state, steps = run_submission(submission, workload, resume=60)
    assert steps == workload.step_hint
    whole, _, _ = run_submission(submission, workload)
    assert workload.evaluate(model) == pytest.approx(workload.evaluate(whole), rel=0.02)
    assert state["optimizer"].state_dict()["state"][0]["step"] == workload.step_hint


def test_what_it_has_learned_survives_a_restart(submission: Any) -> None:
    _, one, _ = run_submission(submission, Prices(), steps=60)
    _, other, _ = run_submission(submission, Prices(), steps=60, resume=60)
    mine, theirs = other["rate"].state_dict(), one["rate"].state_dict()
    assert (mine["policy"], mine["worker"]) == (theirs["policy"], theirs["worker"])
    assert mine["horizon"].keys() == theirs["horizon"].keys() != set()
    assert all(torch.equal(tensor, theirs["horizon"][name]) for name, tensor in mine["horizon"].items())
    assert other["ahead"].batch is None


def test_its_optimizer_is_the_trainers(submission: Any) -> None:
    torch.manual_seed(0)
    models = [nn.Linear(7, 5).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 0.01, "betas": submission.BETAS, "eps": 1e-8, "weight_decay": submission.WEIGHT_DECAY}
    mine = submission._NAdamW(models[0].parameters(), **settings)
    theirs = build_optimizer(OptimizerConfig(name="nadamw", lr=0.01), models[1])
    for _ in range(20):
        x = torch.randn(9, 7, dtype=torch.float64)
        for model, optimizer in zip(models, (mine, theirs), strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_after_the_step_hint_training_is_complete(submission: Any) -> None:
    workload = Prices()
    model, _ = workload.init_model_fn(0)
    state = submission.init_optimizer_state(workload, model, None, None, 0)
    queue = workload.input_queue(0)
    batch = submission.data_selection(workload, queue, state, model, None, None, workload.step_hint, 0)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TrainingCompleteError):
        update(submission, workload, model, state, batch, step=workload.step_hint)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_batch_sizes_are_those_of_the_baselines(submission: Any) -> None:
    assert submission.get_batch_size("criteo1tb") == 262_144
    with pytest.raises(ValueError, match="criteo1tb_layernorm"):  # upon which the harness asks for its base
        submission.get_batch_size("criteo1tb_layernorm")


class OnTwoDevices(nn.DataParallel):
    """What torch makes on a machine with two graphics cards, where there is none."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.device_ids = [0, 1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": lambda _: {"dense": {"kernel": torch.ones(2)}}}, "dict is not an nn.Module"),
        ({"model": OnTwoDevices}, "2 devices"),
        ({"loss_type": LossType.MEAN_ABSOLUTE_ERROR}, "MEAN_ABSOLUTE_ERROR"),
        ({"loss_type": LossType.CTC_LOSS}, "CTC_LOSS"),
        ({"hyperparameters": {"learning_rate": 0.1}}, "--tuning_ruleset=self"),
    ],
)
def test_what_cannot_work_is_refused_by_name(submission: Any, change: dict[str, Any], named: str) -> None:
    workload = Prices()
    workload.loss_type = change.get("loss_type", workload.loss_type)
    model, _ = workload.init_model_fn(0)
    model = change.get("model", lambda model: model)(model)
    with pytest.raises(MeasurementError, match=named):
        submission.init_optimizer_state(workload, model, None, change.get("hyperparameters"), 0)


def test_several_ranks_are_refused(submission: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    workload = Prices()
    with pytest.raises(MeasurementError, match="8 devices"):
        submission.init_optimizer_state(workload, workload.init_model_fn(0)[0], None, None, 0)


def test_another_model_or_selection_is_refused(submission: Any) -> None:
    workload = Prices()
    model, other = workload.init_model_fn(0)[0], workload.init_model_fn(1)[0]
    state = submission.init_optimizer_state(workload, model, None, None, 0)
    batch = next(workload.input_queue(0))
    with pytest.raises(MeasurementError, match="probe its step"):
        update(submission, workload, model, state, batch, step=0)
    with pytest.raises(MeasurementError, match="another model"):
        update(submission, workload, other, state, {**batch, submission.PROBE: batch}, step=0)
    state["rate"]._targets.packed(batch)
    with pytest.raises(MeasurementError, match="of one kind"):
        state["rate"]._targets.packed({**batch, "weights": torch.ones(64)})
