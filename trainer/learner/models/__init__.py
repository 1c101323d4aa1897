"""The models that come with the trainer; each maps dense features (R, D) and table rows (S, R) to logits (R,).

For example:

    model = DeepFM(dense_features=13, sparse_features=26, table_rows=1000, embedding_dim=16, top=(64, 32, 1))
    model.initialize(torch.Generator().manual_seed(0))
"""

from __future__ import annotations

from trainer.learner.models.dcn_v2 import DCNv2
from trainer.learner.models.deepfm import DeepFM
from trainer.learner.models.dlrm import DLRM

SHIPPED = {"dlrm": DLRM, "dcn_v2": DCNv2, "deepfm": DeepFM}
"""By the name that `model.factory` has for it."""

__all__ = ["DLRM", "SHIPPED", "DCNv2", "DeepFM"]
