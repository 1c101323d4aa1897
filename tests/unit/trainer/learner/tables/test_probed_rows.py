"""A measured step reads of a table kept by rows what B1 looks up, before and after it, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stepsize import Estimate, StepSizeWorker
from trainer.learner.nadamw import NAdamW
from trainer.learner.tables import LazyNAdamW, LazyTable, keep_by_rows

ROWS, BATCH, COLUMNS, STEPS = 5000, 32, 4, 8
BCE = nn.BCEWithLogitsLoss()


class Clicks(nn.Module):
    """ids (R, 4) to logits (R,), with a second table that is small enough to be read by its rows or whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.few, self.head = nn.Embedding(ROWS, 8), nn.Embedding(50, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1) + self.few(ids[:, 0] % 50)).squeeze(1)


def trained(*, lazy: bool, reads: list[int | None] | None = None, **options: Any) -> list[Estimate]:
    """Estimates of STEPS steps; `reads` gets the look-ups of every reading of the big table in a measured step,
    None for one of all rows."""
    torch.manual_seed(0)
    model = Clicks()
    if lazy:
        keep_by_rows(model)
    optimizer = (LazyNAdamW if lazy else NAdamW)(model.parameters(), lr=1e-2, weight_decay=0.1)
    worker = StepSizeWorker(model, optimizer, BCE, **options)
    g, found = torch.Generator().manual_seed(1), []
    original = LazyTable.bring_up_to_date
    for step in range(STEPS):
        ids, y = (
            torch.randint(ROWS, (2, BATCH, COLUMNS), generator=g),
            torch.randint(2, (2, BATCH), generator=g).float(),
        )
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(ids[0]), y[0]).backward()
        with pytest.MonkeyPatch.context() as patch:

            def noting(table: LazyTable, rows: Tensor | None = None) -> None:
                if reads is not None and table._rows == ROWS:
                    reads.append(None if rows is None else rows.numel())
                original(table, rows)

            def stepped(*arguments: Any) -> Any:
                with pytest.MonkeyPatch.context() as back:
                    back.setattr(LazyTable, "bring_up_to_date", original)
                    return optimizer.step(*arguments)

            patch.setattr(LazyTable, "bring_up_to_date", noting)
            with worker.around_step(ids[1], y[1], train_inputs=ids[0], train_targets=y[0], step=step):
                stepped()
        found += worker.poll(step=step)
        if step == 0 and reads is not None:
            reads.clear()  # the first measurement learns, and is held against a backward pass
    return found


LOOKED_UP = BATCH * COLUMNS


@pytest.mark.parametrize(
    ("options", "a_step"),
    [
        ({}, [LOOKED_UP] * 2),
        ({"estimators": ("unbiased", "hybrid"), "per_group": True}, [LOOKED_UP] * 4),
        ({"method": "secant"}, [LOOKED_UP] * 2),
        ({"probe_fraction": 0.25}, [LOOKED_UP // 4] * 2),
    ],
    ids=["jvp", "hybrid", "secant", "quarter"],
)
def test_only_the_rows_of_the_probe_are_read(options, a_step):
    reads: list[int | None] = []
    estimates = trained(lazy=True, reads=reads, **options)
    assert reads == a_step * (STEPS - 1)
    assert [repr(one) for one in estimates] == [repr(one) for one in trained(lazy=False, **options)]
