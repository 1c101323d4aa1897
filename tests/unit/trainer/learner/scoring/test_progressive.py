"""Progressive validation: which rows a window has, its figures against scikit-learn's, and a device that runs late."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from tests.fake_cuda import DEVICE, FakeCuda
from tests.resume import assert_resumes
from trainer.learner.scoring import Evaluation, ProgressiveValidation

CPU = torch.device("cpu")


def batches(count: int, *, rows: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(3)
    for _ in range(count):
        label = (torch.rand(rows, generator=random) < 0.25).float()
        yield torch.randn(rows, generator=random) - 1.2 + 0.8 * label, label


def found_in(
    progressive: ProgressiveValidation, pairs: list[tuple[Tensor, Tensor]], *, epoch_steps: int = 10**9
) -> dict[int, Evaluation]:
    """Evaluations by the step that ended their window; an epoch has `epoch_steps` steps."""
    found = {}
    for step, (logits, label) in enumerate(pairs):
        epoch, next_epoch = step // epoch_steps, (step + 1) // epoch_steps
        progressive.add(logits, label, step=step, epoch=epoch, next_epoch=next_epoch)
        window = progressive.take(step)
        if window is not None:
            found[step] = window
    return found


def test_the_figures_of_each_window_are_scikit_learns() -> None:
    pairs = list(batches(70))
    found = found_in(ProgressiveValidation(window_rows=2950, once=True, device=CPU), pairs)
    assert list(found) == [29, 59], "a window ends with the batch that fills it"
    for end, evaluation in found.items():
        logits, label = (torch.cat(parts).double().numpy() for parts in zip(*pairs[end - 29 : end + 1], strict=True))
        probability = 1 / (1 + np.exp(-logits))
        rate = float(label.mean())
        assert (evaluation.split, evaluation.rows) == ("progressive", 3000)
        assert evaluation.loss == pytest.approx(log_loss(label, probability), rel=1e-12)
        assert evaluation.calibration == pytest.approx(probability.mean() / rate, rel=1e-12)
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert evaluation.normalized_entropy == pytest.approx(evaluation.loss / entropy, rel=1e-12)
        assert evaluation.auc is not None
        assert abs(evaluation.auc - roc_auc_score(label, logits)) <= evaluation.auc_error < 1e-3


@pytest.mark.parametrize(("once", "ends"), [(True, [29, 59, 89]), (False, [29, 39])])
def test_only_rows_that_come_for_the_first_time_count(once: bool, ends: list[int]) -> None:
    progressive = ProgressiveValidation(window_rows=3000, once=once, device=CPU)
    found = found_in(progressive, list(batches(100)), epoch_steps=40)
    assert list(found) == ends
    assert found[ends[1]].rows == (3000 if once else 1000), "what the first pass leaves is told at its end"


def test_rows_without_a_finite_loss_are_left_out() -> None:
    pairs = [(logits.clone(), label) for logits, label in batches(4)]
    whole = found_in(ProgressiveValidation(window_rows=400, once=True, device=CPU), pairs)[3]
    pairs.insert(2, (torch.tensor([math.nan, math.inf, -math.inf]), torch.tensor([1.0, 0.0, 1.0])))
    found = found_in(ProgressiveValidation(window_rows=403, once=True, device=CPU), pairs)[4]
    assert found == whole
    nothing = [(torch.full((9,), math.nan), torch.zeros(9))]
    assert found_in(ProgressiveValidation(window_rows=9, once=True, device=CPU), nothing) == {}


def test_logits_beyond_the_bins_count_in_the_outer_ones() -> None:
    logits, label = torch.tensor([-400.0, 400.0, -17.0, 17.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = found_in(ProgressiveValidation(window_rows=4, once=True, device=CPU), [(logits, label)])[0]
    assert (found.auc, found.auc_error) == (1.0, 0.0)


class Fed:
    """Windows of three batches and a bit."""

    def __init__(self) -> None:
        self.progressive = ProgressiveValidation(window_rows=301, once=True, device=CPU)
        self.pairs, self.step = list(batches(20)), 0

    def advance(self) -> Any:
        self.progressive.add(*self.pairs[self.step], step=self.step, epoch=0, next_epoch=0)
        found = self.progressive.take(self.step)
        self.step += 1
        return None if found is None else [found.rows, found.loss, found.auc, found.calibration]

    def state(self) -> Any:
        return {"step": self.step, "progressive": self.progressive.state_dict()}

    def restore(self, state: Any) -> None:
        self.step = state["step"]
        self.progressive.load_state_dict(state["progressive"])


@pytest.mark.parametrize("cut", [3, 4, 6])
def test_a_window_resumes_exactly(cut: int) -> None:
    assert_resumes(Fed, steps=14, cut=cut)


def test_on_a_device_that_runs_late_nothing_waits_and_the_figures_are_the_same() -> None:
    pairs = list(batches(12))
    expected = found_in(ProgressiveValidation(window_rows=400, once=True, device=CPU), pairs)
    for seed in range(4):
        cuda = FakeCuda(seed)
        waits: list[Any] = []
        run = cuda.run
        cuda.run = lambda *, until=None, run=run, waits=waits: (waits.append(until), run(until=until))[1]
        with cuda.installed():
            progressive = ProgressiveValidation(window_rows=400, once=True, device=torch.device(DEVICE))
            waits.clear()
            for step, (logits, label) in enumerate(pairs):
                on_device = (logits.to(DEVICE, non_blocking=True), label.to(DEVICE, non_blocking=True))
                progressive.add(*on_device, step=step, epoch=0, next_epoch=0)
            assert waits == [], "adding waits for nothing"
            found = {step: window for step in range(12) if (window := progressive.take(step)) is not None}
        assert found == expected, f"seed {seed}"


@pytest.mark.gpu
def test_on_cuda_nothing_waits_and_the_figures_are_right() -> None:
    pairs = list(batches(12))
    expected = found_in(ProgressiveValidation(window_rows=400, once=True, device=CPU), pairs)
    device = [(logits.cuda(), label.cuda()) for logits, label in pairs]
    progressive = ProgressiveValidation(window_rows=400, once=True, device=torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, pair in enumerate(device):
            progressive.add(*pair, step=step, epoch=0, next_epoch=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = {step: window for step in range(12) if (window := progressive.take(step)) is not None}
    assert list(found) == list(expected)
    for step, window in found.items():
        assert window.loss == pytest.approx(expected[step].loss, rel=1e-12)
        assert window.auc == pytest.approx(expected[step].auc, abs=1e-4)
