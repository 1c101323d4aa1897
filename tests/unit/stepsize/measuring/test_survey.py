"""What a measurement costs the host, and that nothing it knows of a model outlives a change of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stepsize import StepSizeWorker
from stepsize.measuring import Generators, handoff
from stepsize.measuring.kept import contents_of
from stepsize.measuring.survey import Survey
from tests.cases import CASES
from tests.lanes import DeferredLane
from trainer.learner import ModelConfig, build_model

BCE = nn.BCEWithLogitsLoss()


class Operations(TorchDispatchMode):
    """Counts what is handed to the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module, batch: Callable[[], tuple[Any, Tensor]], lane: DeferredLane | None = None) -> int:
    """Dispatched by one measured step, the training left out, once tables are known and the self-check is made."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    worker = StepSizeWorker(model, optimizer, BCE, lane=lane, self_check=lane is None)
    counted = Operations()
    for step in range(3):
        (inputs, targets), (probe, probed) = batch(), batch()
        optimizer.zero_grad()
        BCE(model(*inputs), targets).backward()
        counted = Operations()
        with counted:
            worker.before_step(probe, probed, step=step)
        optimizer.step()
        with counted:
            worker.after_step()
            if lane is not None:
                lane.tick()
        assert len(worker.drain(step=step)) == 1
    return counted.count


def mlp(layers: int = 2) -> nn.Module:
    hidden = [part for _ in range(layers) for part in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(16, 1), nn.Flatten(0))


def mlp_batch() -> tuple[Any, Tensor]:
    return (torch.randn(32, 16),), torch.randint(2, (32,)).float()


def dlrm() -> nn.Module:
    config = ModelConfig(preset="dlrm-tiny", table_rows=20_000)
    return build_model(config.resolved(), dense_features=13, sparse_features=26, seed=0)


def dlrm_batch() -> tuple[Any, Tensor]:
    return (torch.randn(32, 13), torch.randint(20_000, (26, 32))), torch.randint(2, (32,)).float()


def test_a_measured_step_costs_the_host_so_many_operations(monkeypatch):
    """Of 228 and 465 once; most are the forward pass with its tangents. On a device parameters are not compared."""
    assert operations(mlp(), mlp_batch) <= 176
    assert operations(dlrm(), dlrm_batch) <= 334
    monkeypatch.setattr(handoff, "host_sees", lambda tensor: False)
    assert operations(mlp(), mlp_batch, DeferredLane(1)) <= 179
    assert operations(dlrm(), dlrm_batch, DeferredLane(1)) <= 330


def test_a_layer_more_costs_its_own_pass_and_little_else():
    """A linear layer and a ReLU, dual: 15 operations of the pass, and for weight and bias 12 to keep and make dual."""
    assert operations(mlp(12), mlp_batch) - operations(mlp(2), mlp_batch) <= 10 * 30


def test_the_model_is_walked_once_a_measurement(monkeypatch):
    case, walks = CASES["dlrm_bce"], []
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, case.loss, self_check=False, estimators=("biased",), per_group=True)
    walk = Survey.of.__func__  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(Survey, "of", lambda model: walks.append(model) or walk(Survey, model))
    for step in range(2):
        inputs, targets = case.batch(step)
        case.torch_loss(model(*inputs), targets).backward()
        with worker.around_step(*case.batch(9), train_inputs=inputs, train_targets=targets, step=step):
            optimizer.step()
    assert walks == [model, model]


class Towers(nn.Module):
    """A table, a body and a head, any of which may be exchanged; ids (R, 3) to logits (R,)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(300, 6), nn.Dropout(0.4)
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()), nn.Linear(8, 1)
        self.scale: Any = 1.0
        self.again = False

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).mean(1)
        if self.again:
            x = x + self.table(ids[:, :1]).mean(1)
        return (self.head(self.drop(self.body(x))) * self.scale).squeeze(1)


class ReadsTwice(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + super().forward(input.flip(1))


class ReadsWhole(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + self.weight.mean(0)


def same_weights(module: nn.Embedding, kind: type[nn.Embedding]) -> nn.Embedding:
    made = kind(300, 6)
    made.weight = module.weight
    return made


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def set_table(model: Any, kind: type[nn.Embedding]) -> None:
    model.table = same_weights(model.table, kind)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a module is replaced": lambda model: setattr(model, "head", nn.Linear(8, 1)),
    "a table is read twice": lambda model: set_table(model, ReadsTwice),
    "a table is read as a whole": lambda model: set_table(model, ReadsWhole),
    "a table takes a layer's place": lambda model: setattr(model, "table", nn.Embedding(400, 6)),
    "a parameter is added": lambda model: (
        setattr(model, "scale", nn.Parameter(torch.tensor(1.5)))
        if "scale" not in model.__dict__ or model.__dict__.pop("scale")
        else None
    ),
    "a layer is added": lambda model: model.body.append(nn.Linear(8, 8)),
    "a parameter is frozen": lambda model: model.head.weight.requires_grad_(False),
    "a parameter is thawed": lambda model: model.body[0].weight.requires_grad_(True),
    "evaluation": lambda model: model.eval(),
    "a part is evaluating": lambda model: model.drop.eval(),
    "a hook": lambda model: model.body.register_forward_hook(doubled),
    "a buffer is added": lambda model: (
        model.register_buffer("scale", torch.tensor(0.5)) if model.__dict__.pop("scale") else None
    ),
    "a weight is shared": lambda model: setattr(model.body[0], "weight", nn.Parameter(torch.ones(8, 6))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_worker_measures_what_a_new_one_would(change):
    torch.manual_seed(0)
    model = Towers()
    model.body[0].weight.requires_grad_("thawed" not in change)
    ids, y = torch.randint(300, (4, 24, 3)), torch.randint(2, (4, 24)).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    worker = StepSizeWorker(model, optimizer, BCE)

    def step(measuring: StepSizeWorker, index: int) -> Any:
        optimizer.zero_grad()
        torch.manual_seed(index)
        BCE(model(ids[index]), y[index]).backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        torch.manual_seed(index)
        with measuring.around_step(ids[index + 1], y[index + 1], step=index):
            optimizer.step()
        [estimate] = measuring.poll(step=index)
        return estimate, before

    step(worker, 0)
    step(worker, 1)
    CHANGES[change](model)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    added = [parameter for parameter in model.parameters() if id(parameter) not in known]
    if added:
        optimizer.add_param_group({"params": added})
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found, before = step(worker, 2)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    expected, _ = step(StepSizeWorker(model, optimizer, BCE), 2)
    assert found.slope
    assert repr(found) == repr(expected)


def test_a_survey_names_what_is_shared_once():
    for name, case in CASES.items():
        model = case.model()
        survey = Survey.of(model)
        assert list(survey.parameters.items()) == list(model.named_parameters()), name
        assert list(survey.buffers.items()) == list(model.named_buffers()), name
        assert survey.modules == tuple(model.named_modules()), name
        assert survey.shared == (name in {"tied_embeddings", "several_tables"}), name
    assert Survey.of(CASES["several_tables"].model()).tables == {"left.weight", "own.weight"}


def test_generators_are_found_where_they_were():
    """In attributes, lists and objects beside the model, as before the walk was shared."""
    model: Any = nn.Linear(2, 1)
    model.generator, model.several = torch.Generator().manual_seed(3), [torch.Generator().manual_seed(4)]
    state = Generators.capture(torch.device("cpu"), contents_of(model.named_modules()))
    drawn = [torch.rand(2, generator=generator) for generator in (model.generator, model.several[0])]
    state.restore()
    again = [torch.rand(2, generator=generator) for generator in (model.generator, model.several[0])]
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
