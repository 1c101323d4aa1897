"""Train, predict, and the records as tables, from Python: python -m trainer.examples.train_and_use DATA RUN [STEPS].

DATA is a folder that `alphastream preprocess` wrote, RUN the folder of the run; started again, it goes on with RUN.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa

import trainer
from pipeline import open_split


def settings(data: str, steps: int) -> dict[str, dict[str, object]]:
    """What config.toml would say, with its sections and keys."""
    return {
        "data": {"path": data, "batch_rows": 64},
        "model": {"table_rows": 4096},
        "optimizer": {"average": "ema"},
        "stepsize": {"policy": "observe", "interval": 10, "count": 2},
        "budget": {"steps": steps},
        "eval": {"every_steps": max(steps // 4, 1)},
        "checkpoint": {"every_steps": max(steps // 4, 1)},
    }


def tenths(probabilities: np.ndarray, labels: np.ndarray) -> pa.Table:
    """Rows by their probability, in ten parts: how many clicks were foretold, and how many there were."""
    parts = np.array_split(np.argsort(probabilities), 10)
    return pa.table(
        {
            "rows": [len(part) for part in parts],
            "foretold": [float(probabilities[part].sum()) for part in parts],
            "clicks": [int(labels[part].sum()) for part in parts],
        }
    )


def train_and_use(data: str, run: str, steps: int) -> dict[str, pa.Table]:
    """The tables that are printed, by name."""
    trained = trainer.train(settings(data, steps), run)  # Ctrl-C ends it after a step; the same call goes on
    print(trained.reason)
    opened = trained.open(best=True)  # or trainer.open_run(run) at any time, also while it trains

    batches = list(open_split(data, split="test", table_rows=opened.learner.table_rows))
    probabilities = np.concatenate([opened.predict((batch.dense, batch.ids)) for batch in batches])
    labels = np.concatenate([batch.label.numpy() for batch in batches])
    found = opened.evaluate("test")
    print(f"step {opened.step:,}: test loss {found.loss:.4f} on {found.rows:,} rows")

    records = opened.records  # Arrow tables; records.frame("steps") is a DataFrame of pandas
    return {
        "tenths": tenths(probabilities, labels),
        "evaluations": records.evaluations.select(["split", "step", "loss", "auc"]),
        "alpha": records.alpha.select(["step", "relative", "standard_error"]),
    }


if __name__ == "__main__":
    tables = train_and_use(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100)
    for name, table in tables.items():
        print(f"\n{name}", *table.column_names)
        for row in table.to_pylist():
            print(*row.values())
