"""Progressive validation: how well rows are predicted just before they are trained on, which costs no extra pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainer.learner.scoring.evaluation import Evaluation, WeightSums, area_of_counts, evaluation_of, row_weights
from trainer.learner.scoring.host_copy import HostCopy

PROGRESSIVE = "progressive"
"""What stands in an evaluation of this kind in the place of a split's name."""
BINS = 1 << 17
"""Logits are counted in so many equal bins over ±LIMIT, a label apart; outer bins take the rest. The error that this
leaves in the AUC is told with it."""
LIMIT = 16.0


class ProgressiveValidation:
    """The training batches' own logits and labels, each batch's from before its step, in windows of `window_rows` rows.

    A window ends with the batch that fills it, and then the next one begins: which rows a window has is a function of
    the steps alone, whenever the run was stopped and continued. Only rows that are seen for the first time count. With
    `once` (a log that is followed) all are; else those of the first epoch are, and what its last window has ends with
    it.

    The logits are those of the training step: of the weights themselves, not of their average, with dropout, and in
    training's precision; `shift` is added to them, and a row of label 0 stands for `negative_weight` rows. Rows without
    a finite loss are left out of a window, and of its `rows`.

    On the device nothing waits: counts and sums stay there, in memory that does not grow, until their window ends.
    """

    def __init__(
        self,
        *,
        window_rows: int,
        once: bool,
        device: torch.device,
        shift: float = 0.0,
        negative_weight: float = 1.0,
        weighted: bool = False,
    ) -> None:
        """`weighted`: whether each row counts as often as its own weight says."""
        self.window_rows, self.once = window_rows, once
        self._shift, self._negative_weight = shift, negative_weight
        self._closed: deque[_Window] = deque()
        self._rows = 0
        """Of the batches of the open window, those without a finite loss included: known without asking the device."""
        self._counts = torch.zeros(2 * BINS, dtype=torch.int32, device=device)
        """Rows by bin, first the negative ones."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Of the losses, of the predicted probabilities."""
        self._weights = torch.zeros(2 * BINS if weighted else 0, dtype=torch.float64, device=device)
        """Of rows by bin; empty where rows have none."""

    @torch.no_grad()
    def add(
        self,
        logits: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        *,
        step: int,
        epoch: int,
        next_epoch: int,
    ) -> None:
        """Takes in logits (R,), labels 0 or 1 (R,) and, if rows are `weighted`, how often each counts (R,), of `step`
        in `epoch`; the batch after it is in `next_epoch`.

        Steps come in order.
        """
        if epoch > 0 and not self.once:
            return
        values = logits.detach().double() + self._shift
        weights = row_weights(label, self._negative_weight, weight)
        losses = functional.binary_cross_entropy_with_logits(values, label.double(), weights, reduction="none")
        predicted = values.sigmoid() if weights is None else values.sigmoid() * weights
        finite = losses.isfinite()
        scaled = (values / LIMIT + 1.0) * (BINS / 2)
        bins = scaled.nan_to_num(0.0).clamp(0, BINS - 1).long() + BINS * (label > 0.5)
        self._counts.index_add_(0, bins, finite.int())
        if weight is not None:  # in the order of the rows on any device, as `index_add_` of floats is not
            self._weights.index_put_((bins,), weight.double().masked_fill(~finite, 0.0), accumulate=True)
        self._sums += torch.stack([part.masked_fill(~finite, 0.0).sum() for part in (losses, predicted)])
        self._rows += len(label)
        if self._rows >= self.window_rows or (next_epoch > epoch and not self.once):
            self._closed.append(_Window(step, HostCopy(self._counts, self._sums, self._weights)))
            self._begin()

    def take(self, step: int) -> Evaluation | None:
        """The window that ended with step `step`; None if none did, or if it has no row with a finite loss.

        Waits for the device to come so far. To be asked for each step, in order.
        """
        if not self._closed or self._closed[0].step > step:
            return None
        window = self._closed.popleft()
        assert window.step == step, f"the window of step {window.step} was not taken"
        counts, sums, weights = window.content.wait()
        counts = counts.view(2, BINS)
        rows, positives = int(counts.sum()), int(counts[1].sum())
        if rows == 0:
            return None
        loss, predicted = sums.tolist()
        of_labels = weights.view(2, BINS) if len(weights) else None
        area = area_of_counts((counts if of_labels is None else of_labels).numpy())
        return evaluation_of(
            split=PROGRESSIVE,
            rows=rows,
            positives=positives,
            loss=loss,
            predicted=predicted,
            area=area,
            negative_weight=self._negative_weight,
            weights=None if of_labels is None else WeightSums(float(of_labels.sum()), float(of_labels[1].sum())),
        )

    def state_dict(self) -> dict[str, Any]:
        """The window that is open, without copies; those that ended must have been taken."""
        assert not self._closed, "a window was not taken"
        weights = {"weights": self._weights} if len(self._weights) else {}
        return {"rows": self._rows, "counts": self._counts, "sums": self._sums, **weights}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state_dict`'s values; None: with a window that has no rows yet."""
        self._closed.clear()
        self._begin()
        if state is None:
            return
        self._rows = state["rows"]
        self._counts.copy_(state["counts"])
        self._sums.copy_(state["sums"])
        if len(self._weights):
            self._weights.copy_(state["weights"])

    def _begin(self) -> None:
        """A window without rows, in memory of its own: that of the last is on its way to the host."""
        self._rows = 0
        self._counts, self._sums = torch.zeros_like(self._counts), torch.zeros_like(self._sums)
        self._weights = torch.zeros_like(self._weights)


class _Window(NamedTuple):
    """A window that ended with `step`, on its way to the host."""

    step: int
    content: HostCopy
