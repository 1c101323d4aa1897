"""Compiled, checkpointed and scripted parts, and fused attention: run as written while measured, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from stepsize import MeasurementError, Outcome, StepSizeWorker
from tests.measured import LOSS, assert_same, mlp, one_estimate, rows_of


def without_tangents(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
    """A compiler backend whose kernels, like inductor's, fill fresh memory and so lose tangents without a word."""

    def compiled(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = graph(*args)
        return outputs if torch.is_grad_enabled() else tuple(forward_ad.unpack_dual(o).primal.clone() for o in outputs)

    return compiled


class FunctionCompiledInside(nn.Module):
    """A model whose forward calls a compiled function, which no look at its modules reveals."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.squash = torch.compile(lambda z: 3 * torch.tanh(z), backend=without_tangents)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.squash(self.inner(x))


def test_compiled_models_are_measured_as_their_eager_selves():
    x, y = rows_of(6)
    expected = one_estimate(mlp(), x, y)
    whole = mlp()
    assert_same(one_estimate(whole, x, y, run=torch.compile(whole, backend=without_tangents)), expected)


def test_compiled_parts_are_measured_as_their_eager_selves():
    x, y = rows_of(6)
    expected = one_estimate(mlp(), x, y)
    part = mlp()
    part[0] = torch.compile(part[0], backend=without_tangents)  # pyright: ignore[reportArgumentType]
    assert_same(one_estimate(part, x, y), expected)
    in_place = mlp()
    in_place[2].compile(backend=without_tangents)
    assert_same(one_estimate(in_place, x, y), expected)


def test_functions_compiled_inside_a_model_keep_the_tangent():
    x, y = rows_of(6)

    class Eager(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * torch.tanh(self.inner(x))

    expected = one_estimate(Eager(mlp()), x, y)
    assert_same(one_estimate(FunctionCompiledInside(mlp()), x, y), expected)


class Checkpointed(nn.Module):
    """Recomputes its hidden layer in the backward pass, in either of torch's two ways."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.inner, self.use_reentrant = mlp(), use_reentrant

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[1](self.inner[0](x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[3](self.inner[2](checkpoint(self.hidden, x, use_reentrant=self.use_reentrant)))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("diagnostics", ["none", "full"])
def test_checkpointed_parts_keep_the_tangent(use_reentrant, diagnostics):
    """A reentrant checkpoint reads its parameters inside an autograd function: without care, d's part in them is 0."""
    x, y = rows_of(6)
    x.requires_grad_()  # or a reentrant checkpoint gives its parameters no gradients at all
    expected = one_estimate(mlp(), x, y)
    applied = CheckpointFunction.apply
    found = one_estimate(Checkpointed(use_reentrant=use_reentrant), x, y, diagnostics=diagnostics)
    assert_same(found, expected)
    assert CheckpointFunction.apply == applied
    if found.diagnostics is not None:
        cosine, norms = (
            found.diagnostics.cosine_b1,
            (
                found.diagnostics.gradient_norm_b1,
                found.diagnostics.direction_norm,
            ),
        )
        assert cosine * norms[0] * norms[1] == pytest.approx(expected.slope, rel=1e-4)  # pyright: ignore


def test_scripted_models_and_parts_are_refused_at_once():
    whole, part = torch.jit.script(mlp()), nn.Sequential(torch.jit.script(mlp()), nn.Flatten(0))
    for model, name in ((whole, "the model"), (part, "module '0'")):
        with pytest.raises(MeasurementError, match=f"^{name} is scripted"):
            StepSizeWorker(model, torch.optim.SGD(model.parameters()), LOSS)


def test_fused_attention_is_put_aside_for_the_pass_only():
    """An encoder layer in eval mode takes a fused path, and its attention a fused kernel; neither has a tangent."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0),
        nn.Flatten(),
        nn.Linear(18, 1),
        nn.Flatten(0),
    ).eval()
    x, y = torch.randn(2, 16, 3, 6), torch.randint(2, (2, 16)).float()
    assert torch.backends.mha.get_fastpath_enabled()
    assert one_estimate(model, x, y).outcome in (Outcome.OK, Outcome.ASCENT)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
