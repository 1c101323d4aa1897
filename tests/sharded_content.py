"""What a run of several ranks saves, and what of it each rank has: tables and their moments in rows, all else whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.rank_threads import ThreadGroup, on_ranks, share
from trainer.records import Checkpoint, RowRange, Shares, checkpoint_files, load_latest_on_ranks, write_checkpoint

TABLES = {
    ("model", "table.weight"),
    ("average", "table.weight"),
    ("snapshots", "0.table.weight"),
    ("state", "optimizer.state.0.exp_avg"),
    ("state", "optimizer.state.0.current_at"),
}


def whole_content(step: int, rows: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    table = torch.randn(rows, 3, generator=generator)
    moment = torch.randn(rows, 3, generator=generator)
    weight = torch.randn(4, 5, generator=generator).t()
    return {
        "tensors": {
            "model": {"table.weight": table, "tied": table, "top.weight": weight, "top.count": torch.tensor(step)},
            "average": {"table.weight": (2 * table).bfloat16(), "top.weight": weight.double()},
            "snapshots": {"0.table.weight": table + 1},
        },
        "state": {
            "position": {"step": step},
            "optimizer": {
                "state": {
                    0: {"exp_avg": moment, "current_at": torch.arange(rows), "step": torch.tensor(float(step))},
                    1: {"exp_avg": weight * 2},
                },
                "groups": [{"lr": 0.1}],
            },
            "random": {"torch": torch.arange(8, dtype=torch.uint8)},
        },
    }


def rows_of(content: dict[str, Any], mine: RowRange) -> dict[str, Any]:
    """What a rank has: copies of its rows."""

    def part(key: tuple[str, str], value: torch.Tensor) -> torch.Tensor:
        return value[list(mine.numbers)] if key in TABLES else value

    tensors = {
        file: {name: part((file, name), value) for name, value in values.items()}
        for file, values in content["tensors"].items()
    }
    tensors["model"]["tied"] = tensors["model"]["table.weight"]
    optimizer = content["state"]["optimizer"]
    states = {
        number: {name: part(("state", f"optimizer.state.{number}.{name}"), value) for name, value in state.items()}
        for number, state in optimizer["state"].items()
    }
    return {"tensors": tensors, "state": content["state"] | {"optimizer": optimizer | {"state": states}}}


def shares_of(group: ThreadGroup, mine: RowRange) -> Shares:
    return Shares(group=group, rows=dict.fromkeys(TABLES, mine))


def save_rows(run: Path, step: int, group: ThreadGroup, content: dict[str, Any], rows: int = 7, **values: Any) -> Path:
    """On one rank: a checkpoint of `content`, which holds this rank's rows."""
    files = checkpoint_files(content["tensors"], content["state"])
    shares = shares_of(group, share(rows, group))
    return write_checkpoint(run, step, files, **{"keep": 10, "shares": shares} | values)


def save_on(ranks: int, run: Path, step: int, rows: int = 7, **values: Any) -> list[Any]:
    """The outcomes of all ranks."""
    whole = whole_content(step, rows)
    return on_ranks(
        ranks, lambda group: save_rows(run, step, group, rows_of(whole, share(rows, group)), rows, **values)
    )


def taken(mine: RowRange) -> Any:
    return lambda file, name, shape: mine if (file, name) in TABLES else None


def load_rows(run: Path, group: ThreadGroup, rows: int = 7) -> Checkpoint | None:
    return load_latest_on_ranks(run, group=group, take=taken(share(rows, group)))


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"tensors": checkpoint.tensors, "state": checkpoint.state}


def names_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
