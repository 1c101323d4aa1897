"""A checkpoint that every rank writes its rows of, and rank 0 all else, the manifest last."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StorageError
from pipeline.shards import sync_file, sync_folder
from trainer.records.content import (
    MANIFEST,
    SHARDED_VERSION,
    STATE,
    CheckpointFile,
    file_entry,
    write_manifest,
    write_state,
    write_tensors,
)
from trainer.records.kept import begin, final_of, partial_of, prune, publish
from trainer.records.sharded.group import RanksDriftedError, together
from trainer.records.sharded.rows import RowRange, Shares, same_on_all

SHOWN_SECONDS = 30.0
"""So long a file system that machines share may take to show one of them what another made."""
LOOK_SECONDS = 0.05


def write_on_ranks(
    run: str | Path,
    step: int,
    files: Iterable[CheckpointFile],
    shares: Shares,
    *,
    keep: int,
    best_step: int | None = None,
    before_publishing: Callable[[], None] = lambda: None,
    not_pruned: Callable[[OSError], None] | None = None,
) -> Path:
    """`write_checkpoint` by all ranks of `shares.group`; `keep` and what follows it count on rank 0. Collective.

    All ranks return the path, or raise as `together` does. All of the rows that a rank has are on its host at once.
    Raises also: RanksDriftedError, and nothing is published, if they save different steps, or do not have every row
    once, or not the same of all that `shares` compares.
    """
    group, final = shares.group, final_of(run, step)
    partial = partial_of(final)
    first = group.rank == 0
    part = _Part(partial=partial, shares=shares)

    def prepare() -> int:
        if first:
            begin(partial)
        return step

    def finish() -> None:
        if first:
            part.finish(step, parts, layout)
            before_publishing()
            publish(partial, final)
            prune(final.parent, step, keep=keep, best_step=best_step, not_pruned=not_pruned)

    try:
        _refuse_other_steps(together(group, prepare))
        parts = together(group, lambda: part.write(files))
        _refuse_drift([each["digests"] for each in parts])
        layout = _layout([each["rows"] for each in parts])
        together(group, finish)
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


@dataclass(kw_only=True)
class _Part:
    """What one rank writes."""

    partial: Path
    shares: Shares
    forms: dict[str, Any] = field(default_factory=dict)

    def write(self, files: Iterable[CheckpointFile]) -> dict[str, Any]:
        """Writes this rank's rows, and on rank 0 all else but the JSON; what all ranks must know of it."""
        group, expected = self.shares.group, set(self.shares.rows)
        mine: dict[str, Tensor] = {}
        digests: dict[str, str] = {}
        entries: dict[str, Any] = {}
        _until_shown(self.partial)
        for file in files:
            whole = {name: tensor for name, tensor in file.tensors.items() if (file.name, name) not in expected}
            mine |= {f"{file.name}/{name}": file.tensors[name] for name in file.tensors.keys() - whole.keys()}
            if group.rank == 0:
                self.forms[file.name] = file.form
                entries |= self._written(f"{file.name}.safetensors", whole)
            # what is empty has nothing to compare, and may have two names for what is one tensor elsewhere
            compared = (name for name in whole if whole[name].numel() and same_on_all(file.name, name))
            digests |= {f"{file.name}/{name}": _digest_of(whole[name]) for name in compared}
        missing = {f"{file}/{name}" for file, name in expected} - mine.keys()
        assert not missing, f"rows of no tensor: {', '.join(sorted(missing))}"
        entries |= self._written(_rank_file(group.rank, group.ranks), dict(sorted(mine.items())))
        sync_folder(self.partial)
        rows = {
            f"{file}/{name}": _rows_of(mine[f"{file}/{name}"], having)
            for (file, name), having in self.shares.rows.items()
        }
        return {"files": entries, "rows": rows, "digests": digests}

    def finish(self, step: int, parts: list[dict[str, Any]], layout: Mapping[str, Any]) -> None:
        """On rank 0, once all have written: state and manifest."""
        entries = {name: entry for each in parts for name, entry in each["files"].items()}
        for name, entry in entries.items():
            _until_shown(self.partial / name, entry["bytes"])
        write_state(self.partial, self.forms, sharded=layout)
        entries[STATE] = file_entry(self.partial / STATE)
        write_manifest(self.partial, step, SHARDED_VERSION, dict(sorted(entries.items())))
        sync_file(self.partial / STATE)
        sync_file(self.partial / MANIFEST)
        sync_folder(self.partial)

    def _written(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        path = self.partial / name
        write_tensors(path, tensors)
        sync_file(path)
        return {name: file_entry(path)}


def _rank_file(rank: int, ranks: int) -> str:
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def _rows_of(tensor: Tensor, having: RowRange) -> dict[str, Any]:
    assert len(tensor) == len(having.numbers), f"{len(tensor)} rows where {having} should be"
    told = [having.start, having.stop, having.step]
    shape = [having.rows, *tensor.shape[1:]]
    return {"range": told, "shape": shape, "dtype": str(tensor.dtype).removeprefix("torch.")}


def _digest_of(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _until_shown(path: Path, size: int | None = None) -> None:
    """Returns once `path` is there, with `size` bytes if it is a file: another machine has just made it."""
    given_up = time.monotonic() + SHOWN_SECONDS
    while not (path.exists() and (size is None or path.stat().st_size == size)):
        if time.monotonic() > given_up:
            cause = "is not here, though another rank made it; RUN must be on a file system that all machines share"
            raise StorageError(errno.ENOENT, f"{path.name} {cause}", str(path))
        time.sleep(LOOK_SECONDS)
        for folder in (path.parent.parent, path.parent):  # looking into a folder makes NFS ask the server
            if folder.is_dir():
                list(folder.iterdir())


def _refuse_other_steps(steps: list[int]) -> None:
    for rank, step in enumerate(steps):
        if step != steps[0]:
            raise RanksDriftedError(f"ranks have drifted apart: rank {rank} saves step {step}, rank 0 {steps[0]}")


def _refuse_drift(digests: list[dict[str, str]]) -> None:
    """The same on every rank, which all have all digests."""
    for rank, found in enumerate(digests):
        names = sorted(key for key in {**digests[0], **found} if digests[0].get(key) != found.get(key))
        if names:
            file, _, name = names[0].partition("/")
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise RanksDriftedError(
                f"ranks have drifted apart: {name} in {file}.safetensors{more} of rank {rank} is not what rank 0 has; "
                "no checkpoint was written, go on from the one before"
            )


def _layout(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensor → the shape of the whole one, and which of its rows each file holds; the same on every rank."""
    layout: dict[str, Any] = {}
    for key in sorted({key for part in parts for key in part}):
        having = {rank: part[key] for rank, part in enumerate(parts) if key in part}
        shape = next(iter(having.values()))["shape"]
        held = [_range_of(each) for each in having.values()]
        if not any(each.numbers for each in held) and key not in parts[0]:
            continue  # of a rank without rows, as above
        alike = len({f"{each['dtype']} {each['shape']}" for each in having.values()}) == 1
        if not alike or not _every_row_once(held, shape[0]) or key not in parts[0]:
            told = ", ".join(f"rank {rank} {_told_rows(each)}" for rank, each in having.items())
            raise RanksDriftedError(f"ranks do not have every row of {key} once: {told}")
        ranges = {_rank_file(rank, len(parts)): each["range"] for rank, each in having.items()}
        layout[key] = {"shape": shape, "ranges": ranges}
    return layout


def _every_row_once(held: list[RowRange], rows: int) -> bool:
    alone = not any(one.common(other) for one, other in combinations(held, 2))
    return alone and sum(len(each.numbers) for each in held) == rows


def _range_of(having: dict[str, Any]) -> RowRange:
    start, stop, step = having["range"]
    return RowRange(start, stop, having["shape"][0], step)


def _told_rows(having: dict[str, Any]) -> str:
    return f"{_range_of(having)}, {having['dtype']} {having['shape']}"
