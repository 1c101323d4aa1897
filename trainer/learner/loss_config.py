"""The [loss] section of a configuration; importing it costs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The `[loss]` section: what is trained, and what an answer means where rows of label 0 were left out of the log.

    Trained is the mean over rows of v · w(y) · ℓ, with ℓ the log loss against the target y(1 − ε) + ε/2, w(y) the
    weight of the label and v that of the row, where the data has weights.
    """

    positive_weight: float = 1.0
    """How often the loss of a row of label 1 counts. Answers are then those of a log with so many more such rows:
    nothing undoes this one."""
    label_smoothing: float = 0.0
    """ε, from 0 to below 1: targets are ε/2 and 1 − ε/2."""
    negatives_kept: float | None = None
    """The share of the rows of label 0 that training has; by default what `preprocess --keep-negatives` left of them,
    and all elsewhere. The shards are taken as they are, nothing is left out here."""
    correction: Literal["shift", "weight", "none"] = "shift"
    """How answers become those of the whole log. shift: ln(negatives_kept) is added to every logit that the model
    answers with (He et al. 2014). weight: a row of label 0 counts 1 / negatives_kept times in training (McMahan et al.
    2013). none: answers stay those of the log as it is."""
    evaluated_negatives_kept: float | None = None
    """The same share of the rows that evaluations see; by default 1 where `preprocess` left out training rows, else as
    `negatives_kept`. Scores are those of the whole log: a row of label 0 counts 1 / this share times in them."""
    sample_weights: bool | None = None
    """Whether a row counts as often as its weight says, in training, in α* and in every score; by default where the
    data has weights (`weight` in the format that it was preprocessed by)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.positive_weight < math.inf:
            raise ValueError(f"loss.positive_weight is {self.positive_weight}; give a number above 0")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"loss.label_smoothing is {self.label_smoothing}; give a share from 0 to below 1")
        for name in ("negatives_kept", "evaluated_negatives_kept"):
            share = getattr(self, name)
            if share is not None and not 1e-6 <= share <= 1.0:
                raise ValueError(
                    f"loss.{name} is {share}; give the share of the rows of label 0 that were kept, from 0.000001 to 1"
                )
        if self.evaluated_negatives_kept is not None and self.correction == "none":
            raise ValueError(
                f"loss.evaluated_negatives_kept is {self.evaluated_negatives_kept} and loss.correction is 'none', "
                "which scores rows as they are; leave one of them out"
            )

    def of_data(self, *, weight: str, negatives_kept: float) -> LossConfig:
        """The same with what is left open as the data has it: the column of its weights, empty if there are none, and
        the share of the training rows of label 0 that were kept of the log.

        Raises: ValueError where the two contradict each other.
        """
        weighted = (self.sample_weights is None or self.sample_weights) if weight else self.sample_weights
        if weighted and not weight:
            raise ValueError(
                "loss.sample_weights is true, and the data has no weights; name their column as `weight` in the format "
                "and preprocess the log again, or leave it out"
            )
        loss = replace(self, sample_weights=weighted)
        if negatives_kept == 1.0:
            return loss
        of_log = 1.0 if self.evaluated_negatives_kept is None else self.evaluated_negatives_kept
        kept = of_log * negatives_kept
        if self.negatives_kept is not None and not math.isclose(self.negatives_kept, kept, rel_tol=1e-6):
            of = "" if of_log == 1.0 else f" of the {of_log:g} of the log (loss.evaluated_negatives_kept)"
            raise ValueError(
                f"loss.negatives_kept is {self.negatives_kept:g}, and the data was preprocessed with --keep-negatives "
                f"{negatives_kept:g}{of}; leave loss.negatives_kept out, or set it to {kept:g}"
            )
        evaluated = None if self.correction == "none" else of_log
        kept = kept if self.negatives_kept is None else self.negatives_kept
        return replace(loss, negatives_kept=kept, evaluated_negatives_kept=evaluated)

    @property
    def shift(self) -> float:
        """What is added to a trained logit to answer for the whole log."""
        return math.log(self.negatives_kept or 1.0) if self.correction == "shift" else 0.0

    @property
    def negative_weight(self) -> float:
        """How often the loss of a row of label 0 counts in training."""
        return 1.0 / (self.negatives_kept or 1.0) if self.correction == "weight" else 1.0

    @property
    def largest_weight(self) -> float:
        """The most often that a row counts in training."""
        return max(self.positive_weight, self.negative_weight)

    @property
    def evaluated_negative_weight(self) -> float:
        """How many rows of the whole log one of label 0 stands for where it is scored."""
        return self.evaluated_weight(1.0)

    def evaluated_weight(self, kept_here: float) -> float:
        """The same of a split of which `preprocess` kept that share of the rows of label 0."""
        share = self.negatives_kept if self.evaluated_negatives_kept is None else self.evaluated_negatives_kept
        return 1.0 if self.correction == "none" else 1.0 / ((share or 1.0) * kept_here)

    @property
    def trained_negative_weight(self) -> float:
        """The same of the training rows, which progressive validation scores."""
        return 1.0 if self.correction == "none" else 1.0 / (self.negatives_kept or 1.0)
