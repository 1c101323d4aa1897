"""A loop of one's own that goes on where it was stopped: python -m pipeline.examples.own_loop DATA STATE [STEPS].

DATA is a folder that `alphastream preprocess` wrote; STATE a file that is written every few steps and at the end.
Started again, killed in between or not, it makes the steps that an uninterrupted one would have made, bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import open_pairs

TABLE_ROWS, BATCH_ROWS, SAVE_EVERY = 4096, 64, 10


class WideAndDeep(nn.Module):
    """Logits (R,) of dense (R, D) and ids (S, R): a weight for every category, and an MLP on vectors of them."""

    def __init__(self, dense_features: int, sparse_features: int) -> None:
        super().__init__()
        self.weights, self.vectors = nn.Embedding(TABLE_ROWS, 1), nn.Embedding(TABLE_ROWS, 8)
        nn.init.zeros_(self.weights.weight)
        nn.init.normal_(self.vectors.weight, std=0.05)
        self.deep = nn.Sequential(nn.Linear(dense_features + 8 * sparse_features, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self.vectors(ids).transpose(0, 1).flatten(1)
        return self.weights(ids).sum((0, 2)) + self.deep(torch.cat([dense, vectors], dim=1)).squeeze(1)


def train_pairs(data: str, state_file: Path, steps: int) -> list[tuple[int, float]]:
    """Makes the steps up to `steps`; (step, loss on rows that no step has seen yet) of those that this call made."""
    torch.manual_seed(0)
    with open_pairs(data, batch_rows=BATCH_ROWS, table_rows=TABLE_ROWS, seed=0) as pairs:
        model = WideAndDeep(len(pairs.format.dense), len(pairs.format.sparse))
        optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-2), nn.BCEWithLogitsLoss()
        done = 0
        if state_file.exists():
            state = torch.load(state_file, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            pairs.load_state_dict(state["pairs"])
            done = state["steps"]
        losses = []
        for step in range(done, steps):
            pair = next(pairs)
            with torch.no_grad():  # pairs slide: b1 is the next step's b2, so this is validation in passing
                losses.append((step, float(loss(model(pair.b1.dense, pair.b1.ids), pair.b1.label))))
            optimizer.zero_grad()
            loss(model(pair.b2.dense, pair.b2.ids), pair.b2.label).backward()
            optimizer.step()
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                parts = {"model": model, "optimizer": optimizer, "pairs": pairs}
                state = {name: part.state_dict() for name, part in parts.items()}
                partial = state_file.with_name(f"{state_file.name}.partial")
                torch.save({**state, "steps": step + 1}, partial)
                partial.replace(state_file)  # the file is whole whenever it is there
        return losses


if __name__ == "__main__":
    for step, value in train_pairs(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100):
        print(step, value)
