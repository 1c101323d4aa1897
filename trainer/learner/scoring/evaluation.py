"""How good the predictions on a split are: log loss, area under the ROC curve, normalized entropy, calibration."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.device import ModelInputs
from trainer.learner.scoring.host_copy import HostCopy

EXACT_ROWS = 1 << 25
"""Rows up to which the AUC is exact: their logits take 128 MB, sorting them as much again."""
HISTOGRAM_BINS = 1 << 22
"""Beyond, logits are counted in so many equal bins over ±HISTOGRAM_LIMIT; outer bins take the rest."""
HISTOGRAM_LIMIT = 32.0
IN_FLIGHT_BATCHES = 2
"""On a device that runs asynchronously a batch's logits are counted when so many later ones are under way."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one split."""

    split: str
    rows: int
    loss: float
    """Mean binary cross-entropy: the sum over rows in float64, divided by their number. Where rows of label 0 were
    left out and [loss] corrects for it, both are those of the whole log."""
    auc: float | None
    """Probability that a positive row has the higher logit than a negative one, ties counting half; None if
    one of the two labels is absent or a logit is nan."""
    auc_error: float
    """The exact AUC differs from `auc` by at most this: 0 up to EXACT_ROWS rows."""
    normalized_entropy: float | None
    """Loss over the entropy of the label rate (1: no better than the rate alone); None if that is 0."""
    calibration: float | None
    """Mean prediction over the label rate (1: as many clicks as predicted, above: fewer); None without a click."""


class Evaluator:
    """Accumulates logits and labels in bounded memory.

    On CUDA `add` waits for no more than a batch that has had IN_FLIGHT_BATCHES others behind it: the loss is summed on
    the device, and logits and labels are counted once they have come to the host.
    """

    def __init__(self, *, exact_rows: int = EXACT_ROWS, negative_weight: float = 1.0) -> None:
        self._exact_rows = exact_rows
        self._negative_weight = negative_weight
        self._rows = 0
        self._positives = 0
        self._sums: Tensor | None = None
        """(2,) float64 on the device: of the losses, of the predicted probabilities."""
        self._coming: deque[HostCopy] = deque()
        self._nan = False
        self._kept: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        self._counts: NDArray[np.int64] | None = None

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Takes in logits (R,) and labels 0 or 1 (R,)."""
        logits = logits.detach()
        values = logits.double()
        weights = row_weights(label, self._negative_weight)
        loss = functional.binary_cross_entropy_with_logits(values, label.double(), weights, reduction="sum")
        predicted = values.sigmoid() if weights is None else values.sigmoid() * weights
        sums = torch.stack([loss, predicted.sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._coming.append(HostCopy(logits.float(), label))
        self._take_in(keep=IN_FLIGHT_BATCHES if logits.is_cuda else 0)

    def _take_in(self, *, keep: int) -> None:
        while len(self._coming) > keep:
            logits, label = self._coming.popleft().wait()
            self._count_rows(logits.numpy(), label.numpy() > 0.5)

    def _count_rows(self, values: NDArray[np.float32], positive: NDArray[np.bool_]) -> None:
        self._rows += len(values)
        self._positives += int(positive.sum())
        self._nan = self._nan or bool(np.isnan(values).any())
        # boolean indexing copies, so nothing of the model's output stays alive
        parts = values[~positive], values[positive]
        if self._counts is None and self._rows <= self._exact_rows:
            for kept, part in zip(self._kept, parts, strict=True):
                kept.append(part)
        else:
            self._count(parts)

    def result(self, split: str) -> Evaluation:
        """The numbers of all rows so far.

        Raises: ValueError if there were none.
        """
        self._take_in(keep=0)
        if self._sums is None:
            raise ValueError(f"split {split!r} has no rows to evaluate on; leave it out of eval.splits")
        loss, predicted = self._sums.cpu().tolist()
        return evaluation_of(
            split=split,
            rows=self._rows,
            positives=self._positives,
            loss=loss,
            predicted=predicted,
            area=self._area(),
            negative_weight=self._negative_weight,
        )

    def _count(self, parts: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        if self._counts is None:
            self._counts = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64)
            parts = np.concatenate([*self._kept[0], parts[0]]), np.concatenate([*self._kept[1], parts[1]])
            self._kept = ([], [])
        for counts, part in zip(self._counts, parts, strict=True):
            scaled = (np.nan_to_num(part).astype(np.float64) / HISTOGRAM_LIMIT + 1.0) * (HISTOGRAM_BINS / 2)
            bins = np.clip(scaled, 0, HISTOGRAM_BINS - 1).astype(np.int64)
            np.add.at(counts, bins, 1)

    def _area(self) -> tuple[float | None, float]:
        """The AUC and a bound of its error."""
        pairs = self._positives * (self._rows - self._positives)
        if pairs == 0 or self._nan:
            return None, 0.0
        if self._counts is None:
            return _twice_ordered_pairs(*(np.concatenate(kept) for kept in self._kept)) / (2 * pairs), 0.0
        return area_of_counts(self._counts)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[ModelInputs],
    *,
    split: str,
    negative_weight: float = 1.0,
    whole: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda logits, label: (logits, label),
) -> Evaluation:
    """The model, in evaluation mode, on all rows of `batches`; the mode it had is put back.

    A row of label 0 stands for `negative_weight` rows: loss, entropy and calibration are those of all of them. The AUC
    does not depend on it.
    Where `batches` are shares of a rank, `whole` gives logits and labels of all of them.
    Raises: ValueError if there are no rows.
    """
    evaluator = Evaluator(negative_weight=negative_weight)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            evaluator.add(*whole(model(batch.dense, batch.ids), batch.label))
    finally:
        model.train(training)
    return evaluator.result(split)


def evaluation_of(
    *,
    split: str,
    rows: int,
    positives: int,
    loss: float,
    predicted: float,
    area: tuple[float | None, float],
    negative_weight: float = 1.0,
) -> Evaluation:
    """The figures of `rows` rows, 1 or more: `loss`, `predicted` are sums over them, `area` the AUC and its error.

    A row of label 0 counted `negative_weight` times in these sums.
    """
    counted = positives + negative_weight * (rows - positives)
    entropy = _entropy(positives / counted)
    return Evaluation(
        split=split,
        rows=rows,
        loss=loss / counted,
        auc=area[0],
        auc_error=area[1],
        normalized_entropy=loss / counted / entropy if entropy else None,
        calibration=predicted / positives if positives else None,
    )


def row_weights(label: Tensor, negative_weight: float) -> Tensor | None:
    """How often each row of labels 0 or 1 (R,) counts, (R,) float64; None if each counts once."""
    if negative_weight == 1.0:
        return None
    return torch.full_like(label, negative_weight, dtype=torch.float64).masked_fill(label > 0.5, 1.0)


def area_of_counts(counts: NDArray[np.integer]) -> tuple[float | None, float]:
    """The AUC from how many negative and positive rows each bin of logits holds (2, bins), ascending; and a bound of
    its error, as within a bin the order is unknown: each pair counts half, and is wrong by at most a half.

    None if one of the two is absent.
    """
    negatives, positives = counts.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return None, 0.0
    below = np.cumsum(negatives) - negatives
    tied = positives @ negatives
    return float((positives @ below + tied / 2) / pairs), float(tied / 2 / pairs)


def _twice_ordered_pairs(negatives: NDArray[np.float32], positives: NDArray[np.float32]) -> int:
    """2 · |negative < positive| + |negative = positive| over all pairs: the Mann-Whitney statistic, doubled."""
    negatives.sort()
    positives.sort()
    below = np.searchsorted(negatives, positives, side="left").sum(dtype=np.int64)
    upto = np.searchsorted(negatives, positives, side="right").sum(dtype=np.int64)
    return int(below) + int(upto)


def _entropy(rate: float) -> float:
    """Entropy in nats of a coin that falls on 1 with probability `rate`."""
    if rate in {0.0, 1.0}:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)
