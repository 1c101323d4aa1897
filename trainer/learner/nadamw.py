"""NAdamW as AlgoPerf's self-tuning baseline writes it: one compiled pass, or multi-tensor ones where that cannot be."""

# pyright: reportPrivateImportUsage=false
# (the _foreach_ functions are what torch's own optimizers are built on; their stubs are marked private)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.compiled import compiled
from trainer.learner import kernels

TASK_ELEMENTS = 1 << 20
"""Elements a thread takes at a time: about a millisecond."""
WAVE_ELEMENTS = 1 << 25
"""Bounds the two temporaries of a multi-tensor pass to 128 MB each, and costs no launches worth counting."""


class Piece(NamedTuple):
    """A parameter, or a slice of one, with its gradient, moments and step count."""

    parameter: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    step: Tensor


class NAdamW(Optimizer):
    """Adam with Nesterov's look-ahead and decoupled weight decay; the defaults are AlgoPerf's.

    Step t, counted from 1, with g the gradient (NAdam: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR
    workshop 2016; as in AlgoPerf's baselines: Dahl et al., "Benchmarking Neural Network Training Algorithms",
    arXiv:2306.07179, 2023):

        θ ← θ(1 − lr·λ);  m ← β1·m + (1−β1)·g;  v ← β2·v + (1−β2)·g²
        θ ← θ − lr/(1−β1ᵗ) · (β1·m + (1−β1)·g) / (√v/√(1−β2ᵗ) + ε)

    This is not torch's NAdam, which anneals its momentum and has other bias corrections.
    On the CPU, and on CUDA where Triton runs, one compiled pass reads and writes every array once (7 words an element)
    and needs no further memory. Elsewhere multi-tensor passes move three times as many words, with temporaries bounded
    by WAVE_ELEMENTS; so they do for dtypes the pass is not for (float32, on the CPU float64 too), and where `lr` is a
    tensor on the device or `capturable` is set, as CUDA graphs need: no value is read back from the device then.
    Both kinds round alike on CPU and CUDA, but not as one another. The gradients are not changed.
    """

    found_inf: Tensor | None = None
    """As torch's gradient scaler gives it: a scalar on the parameters' device. Where it is not 0 a step counts, in t,
    and moves nothing. The compiled pass on CUDA reads it there; all others wait for it."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0017486387539278373,
        betas: tuple[float, float] = (0.93266073836, 0.9955159689799007),
        eps: float = 1e-8,
        weight_decay: float = 0.08121616522670176,
        *,
        capturable: bool = False,
    ) -> None:
        if not float(lr) >= 0.0:
            raise ValueError(f"lr is {float(lr)}; give a number from 0")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas are {tuple(betas)}; give two numbers from 0 to below 1")
        if not eps >= 0.0:
            raise ValueError(f"eps is {eps}; give a number from 0")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay is {weight_decay}; give a number from 0")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; returns what `closure` returned.

        Raises: RuntimeError for a sparse gradient (decay and momentum move every row of a table).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._move_group([parameter for parameter in group["params"] if parameter.grad is not None], group)
        return loss

    def _move_group(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        move([self._piece_of(parameter, group) for parameter in parameters], group, self.found_inf)

    def _piece_of(self, parameter: Tensor, group: dict[str, Any]) -> Piece:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise RuntimeError("NAdamW moves every row of a table at every step; build the table with sparse=False")
        state = self._advanced_state(parameter, group)
        return Piece(parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"])

    def _advanced_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The parameter's state, made at its first step, with the coming step counted."""
        state = self.state[parameter]
        if not state:
            device = parameter.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        return state


def move(pieces: list[Piece], group: dict[str, Any], found_inf: Tensor | None = None) -> None:
    """One step of whole tensors; of none where `found_inf` is not 0."""
    if group["capturable"] or (isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu"):
        if not withheld(found_inf):
            for wave in _waves(pieces):
                _move_on_device(wave, group)
        return
    ways: dict[Callable[[list[Piece], dict[str, Any]], None], list[Piece]] = {}
    for piece in pieces:
        ways.setdefault(_way_of(piece), []).append(piece)
    for way, alike in ways.items():
        if way is _move_fused:
            _move_fused(alike, group, found_inf)
        elif not withheld(found_inf):
            way(alike, group)


def withheld(found_inf: Tensor | None) -> bool:
    """Whether a step is not to be made, for who cannot leave that to the device; waits for it."""
    return found_inf is not None and bool(found_inf.item())


def _factors(step: float, group: dict[str, Any]) -> tuple[float, float]:
    """The step's factor f and the denominator's addend e such that the update is −f · m̃ / (√v + e).

    √v/√(1−β2ᵗ) + ε = (√v + ε√(1−β2ᵗ)) / √(1−β2ᵗ): the division moves into the factor and saves one an element.
    """
    beta1, beta2 = group["betas"]
    correction = math.sqrt(1.0 - beta2**step)
    return float(group["lr"]) * correction / (1.0 - beta1**step), group["eps"] * correction


def scalars_of(step: float, group: dict[str, Any]) -> tuple[float, float, float, float, float, float, float]:
    """Decay, β1, 1 − β1, β2, 1 − β2, addend and factor of a step: all that the kernel needs beside the arrays."""
    factor, addend = _factors(step, group)
    beta1, beta2 = group["betas"]
    decay = 1.0 - float(group["lr"]) * group["weight_decay"]
    return decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2, addend, factor


def _way_of(piece: Piece) -> Callable[[list[Piece], dict[str, Any]], None]:
    """The fastest way to move such a piece."""
    device, dtype = piece.parameter.device, piece.parameter.dtype
    if all(t.is_contiguous() and t.dtype is dtype and t.device == device for t in piece[:4]):
        if device.type == "cpu" and dtype in {torch.float32, torch.float64}:
            return _move_compiled
        if device.type == "cuda" and dtype is torch.float32 and kernels.unusable(device) is None:
            return _move_fused
    return _move_in_waves


@compiled(error_model="numpy")
def _kernel(theta, g, m, v, decay, beta1, rest1, beta2, rest2, addend, factor):  # noqa: PLR0917
    """One step of 1-D arrays in place; the scalars have the arrays' dtype, so that nothing is widened."""
    for i in range(theta.size):
        first = beta1 * m[i] + rest1 * g[i]
        second = beta2 * v[i] + rest2 * g[i] * g[i]
        m[i] = first
        v[i] = second
        theta[i] = theta[i] * decay - factor * (beta1 * first + rest1 * g[i]) / (np.sqrt(second) + addend)


def _move_compiled(pieces: list[Piece], group: dict[str, Any]) -> None:
    """One step by the kernel; every element is moved by itself, so the division of labor changes no bit."""
    threads = torch.get_num_threads()
    waiting: list[Future[None]] = []
    for piece in pieces:
        arrays = [tensor.detach().view(-1).numpy() for tensor in piece[:4]]
        scalars = [arrays[0].dtype.type(value) for value in scalars_of(piece.step.item(), group)]
        for start in range(0, arrays[0].size, TASK_ELEMENTS):
            task = [array[start : start + TASK_ELEMENTS] for array in arrays]
            if threads > 1 and arrays[0].size > TASK_ELEMENTS:
                waiting.append(thread_pool(threads).submit(_kernel, *task, *scalars))
            else:
                _kernel(*task, *scalars)
    for future in waiting:
        future.result()


def _move_fused(pieces: list[Piece], group: dict[str, Any], found_inf: Tensor | None = None) -> None:
    """One step by the Triton kernel: one launch for all pieces of a device at the same step."""
    alike: dict[tuple[torch.device, float], list[Piece]] = {}
    for piece in pieces:
        alike.setdefault((piece.parameter.device, piece.step.item()), []).append(piece)
    for (_, step), together in alike.items():
        scalars = [np.float32(value) for value in scalars_of(step, group)]
        whole = [[tensor.detach() for tensor in piece[:4]] for piece in together]
        kernels.move_whole(whole, scalars, found_inf)


@lru_cache(maxsize=1)
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads for the compiled passes, which let go of the interpreter's lock."""
    return ThreadPoolExecutor(threads, thread_name_prefix="nadamw")


def _move_in_waves(pieces: list[Piece], group: dict[str, Any]) -> None:
    for wave in _waves(pieces):
        _move(wave, group)


def _waves(whole: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in order, gathered until a wave has WAVE_ELEMENTS."""
    wave: list[Piece] = []
    elements = 0
    for piece in (part for parameter in whole for part in _split(parameter)):
        wave.append(piece)
        elements += piece.parameter.numel()
        if elements >= WAVE_ELEMENTS:
            yield wave
            wave, elements = [], 0
    if wave:
        yield wave


def _split(whole: Piece) -> Iterator[Piece]:
    *tensors, step = whole
    if whole.parameter.numel() <= WAVE_ELEMENTS or not all(tensor.is_contiguous() for tensor in tensors):
        yield whole
        return
    parts = (tensor.view(-1).split(WAVE_ELEMENTS) for tensor in tensors)
    for parameter, gradient, first, second in zip(*parts, strict=True):
        yield Piece(parameter, gradient, first, second, step)


def _move(wave: list[Piece], group: dict[str, Any]) -> None:
    """One step of the wave in multi-tensor passes, its factors computed on the host."""
    parameters, look_ahead, denominators, steps = _moments(wave, *group["betas"])
    factors, addends = zip(*(_factors(step.item(), group) for step in steps), strict=True)
    torch._foreach_add_(denominators, addends)
    if group["weight_decay"] != 0.0:
        torch._foreach_mul_(parameters, 1.0 - float(group["lr"]) * group["weight_decay"])
    torch._foreach_addcdiv_(parameters, look_ahead, denominators, [-factor for factor in factors])


def _move_on_device(wave: list[Piece], group: dict[str, Any]) -> None:
    """The same with factors that never leave the device."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    parameters, look_ahead, denominators, steps = _moments(wave, beta1, beta2)
    corrections = [(1.0 - beta2**step).sqrt() for step in steps]
    factors = [c / (1.0 - beta1**step) * rate for c, step in zip(corrections, steps, strict=True)]
    torch._foreach_add_(denominators, [correction * group["eps"] for correction in corrections])
    torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])
    torch._foreach_div_(look_ahead, denominators)
    torch._foreach_mul_(look_ahead, factors)
    torch._foreach_sub_(parameters, look_ahead)


def _moments(
    wave: list[Piece], beta1: float, beta2: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Advance m and v; returns parameters, β1·m + (1−β1)·g, √v and step counts of the wave."""
    parameters, gradients, firsts, seconds, steps = (list(column) for column in zip(*wave, strict=True))
    torch._foreach_lerp_(firsts, gradients, 1.0 - beta1)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_addcmul_(seconds, gradients, gradients, 1.0 - beta2)
    look_ahead = list(torch._foreach_lerp(firsts, gradients, 1.0 - beta1))
    return parameters, look_ahead, list(torch._foreach_sqrt(seconds)), steps
