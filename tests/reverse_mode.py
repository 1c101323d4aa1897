"""The slow way to slope and curvature: a backward pass, and curvlinops' matrix-vector product, both dense."""

from __future__ import annotations

import copy
from typing import Any

import torch
from curvlinops import GGNLinearOperator
from torch import Tensor, nn

from tests.cases import Case


class PlainBag(nn.Module):
    """An EmbeddingBag of one fixed length a bag, written as gather and sum, for which forward mode has formulas."""

    def __init__(self, like: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight, self.mode, self.padding_idx = like.weight, like.mode, like.padding_idx

    def forward(self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if offsets is not None:
            ids = ids.reshape(len(offsets) - 1, -1)
        weights = torch.ones(ids.shape, dtype=self.weight.dtype)
        if per_sample_weights is not None:
            weights = per_sample_weights.reshape(ids.shape)
        if self.padding_idx is not None:
            weights = weights * (ids != self.padding_idx)
        summed = (self.weight[ids] * weights[..., None]).sum(1)
        return summed if self.mode == "sum" else summed / weights.sum(1, keepdim=True).clamp(min=1)


class OneArgument(nn.Module):
    """Calls a model of several inputs with one mapping of them, which is all that curvlinops can pass on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, packed: dict[str, Tensor]) -> Tensor:
        return self.inner(*packed.values())


def differentiable_replica(model: nn.Module) -> nn.Module:
    """The same function of the same parameters' copies, with nothing in it that second-order autograd stops at."""
    replica = copy.deepcopy(model)
    for name, module in list(replica.named_modules()):
        if isinstance(module, nn.EmbeddingBag):
            replica.set_submodule(name, PlainBag(module))
        elif isinstance(module, nn.Embedding):
            module.sparse = False
        elif isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return replica


def forms_by_reverse_mode(
    case: Case, model: nn.Module, direction: dict[str, Tensor], inputs: tuple[Any, ...], targets: Tensor
) -> tuple[float, float]:
    """dᵀg by a backward pass, and dᵀGd by curvlinops' G @ d, both dense and at the model's present parameters."""
    replica = differentiable_replica(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        named = dict(replica.named_parameters())
        gradients = torch.autograd.grad(case.torch_loss(replica(*inputs), targets), list(named.values()))
        slope = sum((direction[name] * g).sum().item() for name, g in zip(named, gradients, strict=True))
        operator = GGNLinearOperator(
            OneArgument(replica),
            case.torch_loss,
            list(named.values()),
            [({str(i): value for i, value in enumerate(inputs)}, targets)],
            check_deterministic=False,
            batch_size_fn=lambda _: len(targets),
        )
        flat = torch.cat([direction[name].flatten() for name in named])
        curvature = flat.dot(operator @ flat).item()  # pyright: ignore[reportArgumentType]
    return slope, curvature


def gradient_of(case: Case, model: nn.Module, inputs: tuple[Any, ...], targets: Tensor) -> dict[str, Tensor]:
    """The mean loss's gradient by a backward pass, dense, by name."""
    replica = differentiable_replica(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        named = dict(replica.named_parameters())
        gradients = torch.autograd.grad(case.torch_loss(replica(*inputs), targets), list(named.values()))
    return dict(zip(named, gradients, strict=True))


def hessian_form(
    case: Case, model: nn.Module, direction: dict[str, Tensor], inputs: tuple[Any, ...], targets: Tensor
) -> float:
    """dᵀHd of the mean loss, as the derivative of dᵀg along d."""
    replica = differentiable_replica(model)
    named = dict(replica.named_parameters())
    loss = case.torch_loss(replica(*inputs), targets)
    gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    slope = torch.stack([(direction[name] * g).sum() for name, g in zip(named, gradients, strict=True)]).sum()
    seconds = torch.autograd.grad(slope, list(named.values()), materialize_grads=True)
    return sum((direction[name] * h).sum().item() for name, h in zip(named, seconds, strict=True))


def forms_by_double_backward(
    model: nn.Module, torch_loss: Any, change: list[Tensor], inputs: tuple[Any, ...], targets: Tensor
) -> tuple[float, float]:
    """dᵀg and dᵀGd of the module as it stands, from backward passes alone: what training itself would see.

    Jd is the derivative in v of (Jᵀv)·d, and the Hessian in the logits is differentiated twice.
    """
    z, parameters = model(*inputs), list(model.parameters())
    v = torch.zeros_like(z, requires_grad=True)
    pulled = torch.autograd.grad(z, parameters, v, create_graph=True, materialize_grads=True)
    along = torch.stack([(p * d).sum() for p, d in zip(pulled, change, strict=True)]).sum()
    (tangent,) = torch.autograd.grad(along, v)
    logits = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(torch_loss(logits, targets), logits, create_graph=True)
    slope = (gradient * tangent).sum()
    (product,) = torch.autograd.grad(slope, logits)
    return slope.item(), (product * tangent).sum().item()


def measured_and_expected(
    model: nn.Module,
    torch_loss: Any,
    b1: tuple[tuple[Any, ...], Tensor],
    b2: tuple[tuple[Any, ...], Tensor],
    *,
    loss: Any = None,
    rate: float = 1e-2,
    **options: Any,
) -> tuple[Any, float, float]:
    """The estimate of one AdamW step on `b2`, with dᵀg and dᵀGd on `b1` by double backward at the weights before it."""
    from stepsize import StepSizeWorker

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    worker = StepSizeWorker(model, optimizer, torch_loss if loss is None else loss, **options)
    torch_loss(model(*b2[0]), b2[1]).backward()
    before = copy.deepcopy(model)
    with worker.around_step(*b1, step=0):
        optimizer.step()
    [estimate] = worker.poll(step=0)
    change = [after.detach() - was.detach() for after, was in zip(model.parameters(), before.parameters(), strict=True)]
    slope, curvature = forms_by_double_backward(before, torch_loss, change, *b1)
    return estimate, slope, curvature
