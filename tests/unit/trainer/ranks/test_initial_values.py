"""A table's initial values are those of one rank, on any number of ranks, whichever rows each has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.learner import ModelConfig, build_model
from trainer.learner.models.layers import each_table
from trainer.ranks import Ranks

SIZES = (3, 5000, 1, 4099)


def weight_of(factory: str, tables: Any, ranks: Ranks) -> torch.Tensor:
    config = ModelConfig(
        factory=factory, table_rows=9001, embedding_dim=4, bottom=(8, 4), top=(6, 1), tables=tables
    ).resolved()
    model = build_model(config, dense_features=2, sparse_features=4, seed=5, bucket_sizes=SIZES, ranks=ranks)
    parts = [part for part, _ in each_table(model.table, SIZES if tables == "per_feature" else 9001)]
    assert torch.equal(torch.cat(parts), model.table.weight)
    return model.table.weight.detach()


@pytest.mark.parametrize("tables", ["shared", "per_feature"])
@pytest.mark.parametrize("factory", ["dlrm", "deepfm"])
def test_they_are_every_so_many_th_of_one_ranks(factory: str, tables: str) -> None:
    whole = weight_of(factory, tables, Ranks())
    assert len(whole) == (9001 if tables == "shared" else sum(SIZES))
    for ranks in (2, 3, 8):
        for rank in range(ranks):
            assert torch.equal(weight_of(factory, tables, Ranks(rank=rank, ranks=ranks)), whole[rank::ranks])
