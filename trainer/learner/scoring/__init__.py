"""How well a model predicts: its logits and labels, brought to the host beside the next forward pass, and counted.

For example:

    evaluation = evaluate(model, batches, split="validation")
    print(evaluation.loss, evaluation.auc)
"""

from __future__ import annotations

from trainer.learner.scoring.evaluation import Evaluation, Evaluator, evaluate
from trainer.learner.scoring.host_copy import HostCopy
from trainer.learner.scoring.progressive import ProgressiveValidation

__all__ = ["Evaluation", "Evaluator", "HostCopy", "ProgressiveValidation", "evaluate"]
