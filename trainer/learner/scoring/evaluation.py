"""How good the predictions on a split are: log loss, area under the ROC curve, normalized entropy, calibration."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

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
    weight: float | None = None
    """What the rows' own weights sum to, each of which counts so often in all figures but `rows`; None: each counts
    once."""

    def values(self) -> dict[str, Any]:
        """As plain values, without a weight that is not there."""
        values = asdict(self)
        if self.weight is None:
            del values["weight"]
        return values


_ByLabel = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of the rows of label 0, and of label 1."""
_Lists = tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]


class WeightSums(NamedTuple):
    """Sums over rows of their own weights."""

    all: float
    positive: float
    """Of those with label 1."""


class Evaluator:
    """Accumulates logits, labels and weights in bounded memory.

    On CUDA `add` waits for no more than a batch that has had IN_FLIGHT_BATCHES others behind it: the loss is summed on
    the device, and logits and labels are counted once they have come to the host.
    """

    def __init__(self, *, exact_rows: int = EXACT_ROWS, negative_weight: float = 1.0) -> None:
        self._exact_rows = exact_rows
        self._negative_weight = negative_weight
        self._rows = 0
        self._positives = 0
        self._sums: Tensor | None = None
        """(2,) or, of rows with weights, (4,) float64 on the device: of the losses, of the predicted probabilities, and
        as WeightSums has them."""
        self._coming: deque[HostCopy] = deque()
        self._nan = False
        self._kept: _Lists = ([], [])
        self._kept_weights: _Lists = ([], [])
        self._counts: NDArray[Any] | None = None
        """Rows by bin, or their weights, first of label 0."""

    def add(self, logits: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Takes in logits (R,), labels 0 or 1 (R,), and how often each row counts (R,): once if that is None."""
        logits = logits.detach()
        values = logits.double()
        weights = row_weights(label, self._negative_weight, weight)
        loss = functional.binary_cross_entropy_with_logits(values, label.double(), weights, reduction="sum")
        predicted = values.sigmoid() if weights is None else values.sigmoid() * weights
        sums = [loss, predicted.sum()]
        if weight is not None:
            sums += [weight.double().sum(), (weight.double() * label).sum()]
        sums = torch.stack(sums)
        self._sums = sums if self._sums is None else self._sums + sums
        self._coming.append(HostCopy(logits.float(), label, *([] if weight is None else [weight])))
        self._take_in(keep=IN_FLIGHT_BATCHES if logits.is_cuda else 0)

    def _take_in(self, *, keep: int) -> None:
        while len(self._coming) > keep:
            logits, label, *weight = (part.numpy() for part in self._coming.popleft().wait())
            self._count_rows(logits, label > 0.5, weight[0] if weight else None)

    def _count_rows(
        self, values: NDArray[np.float32], positive: NDArray[np.bool_], weight: NDArray[np.float32] | None
    ) -> None:
        self._rows += len(values)
        self._positives += int(positive.sum())
        self._nan = self._nan or bool(np.isnan(values).any())
        # boolean indexing copies, so nothing of the model's output stays alive
        parts = values[~positive], values[positive]
        weights = None if weight is None else (weight[~positive], weight[positive])
        if self._counts is None and self._rows <= self._exact_rows:
            for kept, part in zip(self._kept, parts, strict=True):
                kept.append(part)
            for kept, part in zip(self._kept_weights, weights or (), strict=weights is not None):
                kept.append(part)
        else:
            self._count(parts, weights)

    def result(self, split: str) -> Evaluation:
        """The numbers of all rows so far.

        Raises: ValueError if there were none.
        """
        self._take_in(keep=0)
        if self._sums is None:
            raise ValueError(f"split {split!r} has no rows to evaluate on; leave it out of eval.splits")
        loss, predicted, *weights = self._sums.cpu().tolist()
        return evaluation_of(
            split=split,
            rows=self._rows,
            positives=self._positives,
            loss=loss,
            predicted=predicted,
            area=self._area(),
            negative_weight=self._negative_weight,
            weights=WeightSums(*weights) if weights else None,
        )

    def _count(self, parts: _ByLabel, weights: _ByLabel | None) -> None:
        if self._counts is None:
            self._counts = np.zeros((2, HISTOGRAM_BINS), dtype=np.int64 if weights is None else np.float64)
            parts = np.concatenate([*self._kept[0], parts[0]]), np.concatenate([*self._kept[1], parts[1]])
            if weights is not None:
                kept = self._kept_weights
                weights = np.concatenate([*kept[0], weights[0]]), np.concatenate([*kept[1], weights[1]])
            self._kept, self._kept_weights = ([], []), ([], [])
        for counts, part, weight in zip(self._counts, parts, weights or (1, 1), strict=True):
            scaled = (np.nan_to_num(part).astype(np.float64) / HISTOGRAM_LIMIT + 1.0) * (HISTOGRAM_BINS / 2)
            bins = np.clip(scaled, 0, HISTOGRAM_BINS - 1).astype(np.int64)
            np.add.at(counts, bins, weight)

    def _area(self) -> tuple[float | None, float]:
        """The AUC and a bound of its error."""
        pairs = self._positives * (self._rows - self._positives)
        if pairs == 0 or self._nan:
            return None, 0.0
        if self._counts is None and self._kept_weights[0]:
            kept = (np.concatenate(each) for each in (*self._kept, *self._kept_weights))
            return _weighted_area(*kept), 0.0
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
    whole: Callable[..., tuple[Tensor, Tensor, Tensor | None]] = lambda *share: share,
) -> Evaluation:
    """The model, in evaluation mode, on all rows of `batches`, each as often as its weight says, if it has one; the
    mode it had is put back.

    A row of label 0 stands for `negative_weight` rows: loss, entropy and calibration are those of all of them. The AUC
    does not depend on it.
    Where `batches` are shares of a rank, `whole` gives logits, labels and weights of all of them.
    Raises: ValueError if there are no rows.
    """
    evaluator = Evaluator(negative_weight=negative_weight)
    training = model.training
    model.eval()
    try:
        for batch in batches:
            logits, label, weight = whole(model(batch.dense, batch.ids), batch.label, batch.weight)
            if len(label):  # damage may have left a batch of several ranks no row
                evaluator.add(logits, label, weight)
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
    weights: WeightSums | None = None,
) -> Evaluation:
    """The figures of `rows` rows, 1 or more: `loss`, `predicted` are sums over them, `area` the AUC and its error.

    A row of label 0 counted `negative_weight` times in these sums, and each as often as its own of the `weights` says.
    """
    all_of, clicked = (rows, positives) if weights is None else weights
    counted = clicked + negative_weight * (all_of - clicked)
    entropy = _entropy(clicked / counted)
    return Evaluation(
        split=split,
        rows=rows,
        loss=loss / counted,
        auc=area[0],
        auc_error=area[1],
        normalized_entropy=loss / counted / entropy if entropy else None,
        calibration=predicted / clicked if positives else None,
        weight=None if weights is None else weights.all,
    )


def row_weights(label: Tensor, negative_weight: float, weight: Tensor | None = None) -> Tensor | None:
    """How often each row of labels 0 or 1 (R,) counts, (R,) float64, if a row has the `weight` (R,) of its own and one
    of label 0 stands for `negative_weight`; None if each counts once."""
    if weight is not None:
        by_label = row_weights(label, negative_weight)
        return weight.double() if by_label is None else weight.double() * by_label
    if negative_weight == 1.0:
        return None
    return torch.full_like(label, negative_weight, dtype=torch.float64).masked_fill(label > 0.5, 1.0)


def area_of_counts(counts: NDArray[np.integer] | NDArray[np.floating]) -> tuple[float | None, float]:
    """The AUC from how many negative and positive rows (or how much weight of them) each bin of logits holds (2, bins),
    ascending; and a bound of its error, as within a bin the order is unknown: each pair counts half, and is wrong by at
    most a half.

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


def _weighted_area(
    negatives: NDArray[np.float32],
    positives: NDArray[np.float32],
    negative_weights: NDArray[np.float32],
    positive_weights: NDArray[np.float32],
) -> float:
    """The share of Σ v·w over all pairs, v and w the weights of a negative and a positive row, in which the positive
    has the higher logit, ties counting half."""
    order = np.argsort(negatives, kind="stable")
    upto = np.concatenate(([0.0], np.cumsum(negative_weights[order], dtype=np.float64)))
    negatives = negatives[order]
    sides = [upto[np.searchsorted(negatives, positives, side=side)] for side in ("left", "right")]
    weights = positive_weights.astype(np.float64)
    return float(weights @ (sides[0] + sides[1]) / (2 * weights.sum() * upto[-1]))


def _entropy(rate: float) -> float:
    """Entropy in nats of a coin that falls on 1 with probability `rate`."""
    if rate in {0.0, 1.0}:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)
