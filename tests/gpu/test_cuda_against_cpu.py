"""What is measured and trained on CUDA is what it is on the CPU, by every option, up to rounding."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from stepsize import Estimate, StepSizeWorker
from stepsize.options import MeasuringOptions
from tests.cases import CASES
from tests.gpu.runs import Traces, settings, trained

OPTIONS: dict[str, dict[str, Any]] = {
    "unbiased": {},
    "all estimators": {"estimators": ("unbiased", "biased", "hybrid")},
    "secant": {"method": "secant"},
    "bfloat16": {"precision": "bfloat16"},
    "hessian": {"curvature": "hessian"},
    "empirical Fisher": {"curvature": "empirical_fisher"},
    "diagnostics": {"diagnostics": "full"},
    "each group": {"per_group": True},
    "half the rows": {"probe_fraction": 0.5},
}
RELATIVE = {"bfloat16": 0.05, "secant": 1e-6}
"""bfloat16 keeps 8 bits, and the products that are rounded to them add up in another order; the secant is a difference
of logits. Everything else is float64."""


def test_every_option_is_compared() -> None:
    """Whoever adds an option adds it above."""
    given = {name for options in OPTIONS.values() for name in options}
    assert given == {field.name for field in fields(MeasuringOptions)}


def measured(name: str, device: str, *, rate: float = 0.1) -> Estimate:
    """The second of two steps' estimates, of one model with two groups."""
    case, options = CASES["dlrm_bce"], OPTIONS[name]
    if options.get("curvature", "ggn") != "ggn":
        pytest.importorskip("curvlinops", reason="other curvatures need the extra `curvlinops`")
    model: Any = case.model().to(device)
    groups = [{"params": [model.table.weight]}, {"params": [*model.bottom.parameters(), *model.top.parameters()]}]
    worker = StepSizeWorker(model, optimizer := torch.optim.SGD(groups, lr=rate), case.loss, **options)
    estimates: list[Estimate] = []
    for step in range(2):
        (train_inputs, train_targets), (inputs, targets) = (moved(case.batch(2 * step + k), device) for k in (0, 1))
        optimizer.zero_grad()
        case.torch_loss(model(*train_inputs), train_targets).backward()
        with worker.around_step(inputs, targets, train_inputs=train_inputs, train_targets=train_targets, step=step):
            optimizer.step()
        estimates += worker.drain(step=step)
    return estimates[-1]


def moved(batch: tuple[tuple[torch.Tensor, ...], torch.Tensor], device: str) -> Any:
    return tuple(tensor.to(device) for tensor in batch[0]), batch[1].to(device)


def numbers_of(value: Any, where: str = "") -> dict[str, float]:
    """Every number of an estimate by its place."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in numbers_of(item, f"{where}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for index, item in enumerate(value) for k, v in numbers_of(item, f"{where}[{index}]").items()}
    return {where: float(value)} if isinstance(value, int | float) else {}


def close(found: Estimate, expected: Estimate, relative: float) -> bool:
    here, there = numbers_of(asdict(found)), numbers_of(asdict(expected))
    close_by = all(math.isclose(here[name], there[name], rel_tol=relative, abs_tol=1e-12) for name in here)
    return here.keys() == there.keys() and found.outcome is expected.outcome and close_by


@pytest.mark.parametrize("name", OPTIONS)
def test_an_estimate_is_the_same(name: str, device: str) -> None:
    expected = measured(name, "cpu")
    relative = RELATIVE.get(name, 1e-8)
    assert close(measured(name, device), expected, relative)
    another = measured(name, device, rate=0.1 * (1 + 4 * relative))
    assert not close(another, expected, relative), "a difference a little above rounding is noticed"


def losses_close(found: Traces, expected: Traces, relative: float) -> bool:
    pairs = zip(found.steps, expected.steps, strict=True)
    return all(math.isclose(ours[2], theirs[2], rel_tol=relative) for ours, theirs in pairs)


@pytest.mark.parametrize("table", ["lazy", "dense"])
@pytest.mark.parametrize("average", ["none", "ema"])
def test_sixty_steps_are_the_same(data: Path, device: str, table: str, average: str) -> None:
    def run(where: str, lr: float = 0.002) -> Traces:
        return trained(settings(data, optimizer={"table": table, "average": average, "lr": lr}), where)

    expected = run("cpu")
    assert losses_close(run(device), expected, 1e-4)
    assert not losses_close(run(device, 0.0022), expected, 1e-4)
