"""NAdamW against its formula; optimizers by name against what they should be and refuse."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

import trainer.learner.nadamw
from stepsize.policies.rates import set_learning_rate
from trainer.learner.config import PACKAGED, REFUSED, ModelConfig, OptimizerConfig, optimizer_names
from trainer.learner.model import build_model
from trainer.learner.nadamw import NAdamW
from trainer.learner.optimizers import build_optimizer, evaluation_mode, learning_rate


class ReferenceNAdamW:
    """The formula of NAdamW's docstring on one float64 array, statement by statement."""

    def __init__(self, theta: np.ndarray, *, beta1: float, beta2: float, eps: float, decay: float) -> None:
        self.theta, self.m, self.v, self.t = theta.astype(np.float64), np.zeros(theta.shape), np.zeros(theta.shape), 0
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay

    def step(self, g: np.ndarray, lr: float) -> None:
        self.t += 1
        self.theta = self.theta * (1 - lr * self.decay)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_tilde = self.beta1 * self.m + (1 - self.beta1) * g
        denominator = np.sqrt(self.v) / math.sqrt(1 - self.beta2**self.t) + self.eps
        self.theta = self.theta - lr / (1 - self.beta1**self.t) * m_tilde / denominator


SHAPES = [(7, 5), (3,), (), (40, 3)]


def parameters(dtype: torch.dtype = torch.float32, *, strided: bool = False) -> list[nn.Parameter]:
    """The same numbers each time; `strided`, every second of memory, which the compiled pass leaves to the others."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [nn.Parameter(torch.stack([value, value], -1)[..., 0] if strided else value) for value in values]


def gradients(step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (step % 5 - 4) for shape in SHAPES]


@pytest.mark.parametrize("kind", ["compiled", "tensor", "multi-tensor", "capturable"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_nadamw_equals_the_formula_for_50_steps(
    kind: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.learner.nadamw, "TASK_ELEMENTS", 16)
    monkeypatch.setattr(trainer.learner.nadamw, "WAVE_ELEMENTS", 16)
    tested = parameters(dtype, strided=kind == "multi-tensor")
    lr = 0.05 if kind in {"compiled", "multi-tensor"} else torch.tensor(0.05, dtype=torch.float64)
    optimizer = NAdamW(tested, lr=lr, betas=(0.93, 0.995), eps=1e-8, weight_decay=0.08, capturable=kind == "capturable")
    references = [
        ReferenceNAdamW(parameter.detach().numpy(), beta1=0.93, beta2=0.995, eps=1e-8, decay=0.08)
        for parameter in tested
    ]
    for step in range(50):
        rate = 0.05 * (1 - step / 60)
        set_learning_rate(optimizer, rate)
        for parameter, gradient, reference in zip(tested, gradients(step, dtype), references, strict=True):
            parameter.grad = gradient
            reference.step(gradient.double().numpy(), rate)
        optimizer.step()
        for parameter, gradient in zip(tested, gradients(step, dtype), strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)
    if kind == "capturable":
        tolerance = 5e-6 if dtype is torch.float32 else 1e-5  # its step counts, and so β², are float32
    for parameter, reference in zip(tested, references, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), reference.theta, rtol=tolerance, atol=tolerance)


def stepped(steps: int = 5, *, strided: bool = False) -> list[nn.Parameter]:
    tested = parameters(strided=strided)
    optimizer = NAdamW(tested, lr=0.1)
    for step in range(steps):
        for parameter, gradient in zip(tested, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return tested


@pytest.mark.parametrize("strided", [False, True])
def test_dividing_the_work_changes_no_bit(strided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stepped(strided=strided)
    monkeypatch.setattr(trainer.learner.nadamw, "TASK_ELEMENTS", 7)
    monkeypatch.setattr(trainer.learner.nadamw, "WAVE_ELEMENTS", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(one, other) for one, other in zip(whole, stepped(strided=strided), strict=True))


@pytest.mark.parametrize("wave", [4, 1000])
def test_nadamw_moves_a_parameter_of_any_layout_or_precision(wave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.learner.nadamw, "WAVE_ELEMENTS", wave)
    values, gradient = torch.arange(12.0).view(3, 4), torch.linspace(-1, 1, 12).view(3, 4)
    plain = nn.Parameter(values.clone())
    turned = nn.Parameter(values.t().contiguous().t())
    half = nn.Parameter(values.bfloat16())
    assert not turned.is_contiguous()
    for parameter in (plain, turned, half):
        parameter.grad = gradient.to(parameter.dtype)
        NAdamW([parameter], lr=0.5).step()
    torch.testing.assert_close(turned.detach(), plain.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(half.float(), plain.detach(), rtol=1e-2, atol=1e-2)


def test_nadamw_leaves_parameters_without_gradient_alone() -> None:
    moved, still = parameters()[:2]
    moved.grad = torch.ones_like(moved)
    before = still.detach().clone()
    optimizer = NAdamW([moved, still], lr=0.1)
    optimizer.step()
    assert torch.equal(still, before)
    assert still not in optimizer.state


def test_nadamw_refuses_sparse_gradients() -> None:
    table = nn.Embedding(10, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        NAdamW(table.parameters()).step()


def test_nadamw_defaults_are_algoperfs() -> None:
    defaults = NAdamW(parameters()).defaults
    assert (defaults["lr"], defaults["betas"]) == (0.0017486387539278373, (0.93266073836, 0.9955159689799007))
    assert (defaults["eps"], defaults["weight_decay"]) == (1e-8, 0.08121616522670176)


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -0.1}])
def test_nadamw_refuses_impossible_settings(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        NAdamW(parameters(), **values)


def test_a_restored_nadamw_continues_bit_for_bit() -> None:
    def run(optimizer: NAdamW, tested: list[nn.Parameter], steps: range) -> None:
        for step in steps:
            for parameter, gradient in zip(tested, gradients(step), strict=True):
                parameter.grad = gradient
            optimizer.step()

    whole = parameters()
    run(NAdamW(whole, lr=0.1), whole, range(8))
    cut = parameters()
    first = NAdamW(cut, lr=0.1)
    run(first, cut, range(4))
    second = NAdamW(cut, lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, cut, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


def tiny_model() -> nn.Module:
    return build_model(
        ModelConfig(table_rows=64, embedding_dim=4, bottom=(6, 4), top=(8, 1)),
        dense_features=3,
        sparse_features=4,
        seed=0,
    )


def installed(name: str) -> bool:
    return name not in PACKAGED or importlib.util.find_spec(PACKAGED[name][0]) is not None


def test_every_class_of_torch_has_a_name() -> None:
    classes = [value for value in vars(torch.optim).values() if isinstance(value, type)]
    of_torch = {each.__name__.lower() for each in classes if issubclass(each, torch.optim.Optimizer)} - {"optimizer"}
    assert set(optimizer_names()) - set(PACKAGED) - {"nadamw"} == of_torch - set(REFUSED)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_known_name_builds_and_lowers_a_loss(name: str) -> None:
    if not installed(name):
        pytest.skip(f"the package of {name} is not installed")
    model = tiny_model()
    optimizer = build_optimizer(OptimizerConfig(name=name.upper()), model)
    generator = torch.Generator().manual_seed(0)
    dense, ids = torch.rand(32, 3, generator=generator), torch.randint(0, 64, (4, 32), generator=generator)
    label = (torch.rand(32, generator=generator) < 0.3).float()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def loss() -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(dense, ids), label)

    first = loss().item()
    for _ in range(6):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_names_lead_to_the_right_classes_and_settings() -> None:
    model = tiny_model()
    sgd = build_optimizer(OptimizerConfig(name="SGD", lr=0.3, options={"momentum": 0.9, "nesterov": True}), model)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], learning_rate(sgd)) == (0.9, True, 0.3)
    adamw = build_optimizer(OptimizerConfig(name="adamw", betas=(0.5, 0.6), weight_decay=0.2), model)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"], adamw.defaults["lr"]) == ((0.5, 0.6), 0.2, 1e-3)
    nadamw = build_optimizer(OptimizerConfig().resolved("dlrm-small"), model)
    assert isinstance(nadamw, NAdamW)
    assert nadamw.defaults["lr"] == 0.0017486387539278373
    assert nadamw.defaults["weight_decay"] == 0.08121616522670176


def test_the_preset_fills_only_its_own_optimizer_and_only_what_is_not_given() -> None:
    assert OptimizerConfig(name="sgd").resolved("dlrm-tiny") == OptimizerConfig(name="sgd")
    resolved = OptimizerConfig(lr=0.25).resolved("dlrm-tiny")
    assert resolved.lr == 0.25
    assert resolved.betas == (0.93266073836, 0.9955159689799007)
    assert resolved.weight_decay is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "nadmw"}, "'nadmw'; known are.*nadamw"),
        ({"name": "lbfgs"}, "closure"),
        ({"name": "SparseAdam"}, "sparse gradients"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "optimizer.betas is set, but sgd takes no betas"),
        ({"name": "sgd", "options": {"momentun": 0.9}}, "optimizer.options.momentun.*momentum"),
        ({"name": "adamw", "options": {"amsgrad": True, "betas": [2.0, 0.9]}}, "optimizer adamw: .*2.0"),
        ({"lr": -1.0}, "optimizer.lr is -1.0"),
        ({"average_decay": 1.0}, "optimizer.average_decay is 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_optimizer(OptimizerConfig(**values), tiny_model())
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=r"'schedulefree' is not installed.*alphastream\[optimizers\]"):
        OptimizerConfig(name="schedulefree_adamw")


def test_schedule_free_is_evaluated_at_its_average() -> None:
    pytest.importorskip("schedulefree")
    model = tiny_model()
    optimizer = build_optimizer(OptimizerConfig(name="schedulefree_adamw", lr=0.1), model)
    assert optimizer.defaults["betas"] == (0.9, 0.9955159689799007)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    with evaluation_mode(optimizer):
        assert not all(torch.equal(a, b) for a, b in zip(trained, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained, model.parameters(), strict=True)), "evaluating trained"


def test_muon_takes_the_matrices_of_hidden_layers_only() -> None:
    model = tiny_model()
    optimizer = build_optimizer(OptimizerConfig(name="muon", lr=0.02), model)
    by_muon, by_adamw = (group["params"] for group in optimizer.param_groups)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert [tuple(value.shape) for value in by_muon] == [
        shapes[name] for name in ("bottom.0.weight", "bottom.2.weight", "top.0.weight")
    ]
    assert len(by_muon) + len(by_adamw) == len(shapes)
    assert all(group["lr"] == 0.02 for group in optimizer.param_groups)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float", "tensor", "capturable"])
def test_nadamw_on_the_device_equals_the_compiled_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.learner.nadamw, "WAVE_ELEMENTS", 16)
    expected = stepped(steps=20)
    tested = [nn.Parameter(parameter.detach().cuda()) for parameter in parameters()]
    rate = 0.1 if kind == "float" else torch.tensor(0.1, device="cuda")
    optimizer = NAdamW(tested, lr=rate, capturable=kind == "capturable")
    for step in range(20):
        for parameter, gradient in zip(tested, gradients(step), strict=True):
            parameter.grad = gradient.cuda()
        optimizer.step()
    for one, other in zip(tested, expected, strict=True):
        torch.testing.assert_close(one.detach().cpu(), other.detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.gpu
def test_a_capturable_nadamw_replays_from_a_cuda_graph() -> None:
    eager, replayed = ([nn.Parameter(value.detach().cuda()) for value in parameters()] for _ in range(2))
    for tested in (eager, replayed):
        for parameter, gradient in zip(tested, gradients(0), strict=True):
            parameter.grad = gradient.cuda()
    one = NAdamW(eager, lr=torch.tensor(0.1, device="cuda"), capturable=True)
    other = NAdamW(replayed, lr=torch.tensor(0.1, device="cuda"), capturable=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other.step()  # makes the state outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other.step()
    for _ in range(5):
        graph.replay()
    for _ in range(6):
        one.step()
    for a, b in zip(eager, replayed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
