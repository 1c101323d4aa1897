"""DATA/.work: what is done before the manifest can be written, and how much of it is still whole.

What is to be appended to a folder lies in DATA/.append, which a command that finds the folder complete leaves alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.preprocess.plan import Part
from pipeline.shards import Manifest, Shard, write_atomically

APPENDING = ".append"
_FOLDERS = ("shards", "rejects", "counts", "done")


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """That a part is done, and all that the manifest needs from it."""

    key: str
    source: int
    split: str
    first_line: int
    lines: int
    rows: int
    rejected_rows: int
    bytes: int
    """Of the source as stored."""
    stop_offset: int | None
    """File position after the part, for a plain local file."""
    checksum: int | None
    """CRC-32 of the part's lines, for standard input, which has no size or time that could tell it from another."""
    shard_bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    row_group_bytes: tuple[int, ...]
    row_group_crc32: tuple[int, ...] = ()
    """() for a part that an earlier version encoded."""
    counts_bytes: int | None = None
    """Sizes of the files beside the shard; None in records of versions that did not keep them."""
    rejects_bytes: int | None = None

    def shard(self, path: str) -> Shard:
        """The part's shard, listed under `path`."""
        return Shard(
            path=path,
            rows=self.rows,
            bytes=self.shard_bytes,
            sha256=self.sha256,
            row_groups=tuple(self.row_groups),
            row_group_bytes=tuple(self.row_group_bytes),
            row_group_crc32=tuple(self.row_group_crc32),
        )


class Workplace:
    """The files of DATA/.work, or of another such folder, by the key of the part that they belong to."""

    def __init__(self, out: Path, name: str = ".work") -> None:
        self.out = out
        self.root = out / name
        self.plan_file = self.root / "plan.json"
        self.rejects_folder = self.root / "rejects"
        self._final_paths_file = self.root / "final_paths.json"

    def absolute(self) -> Workplace:
        """The same for a process in another working directory."""
        return Workplace(self.out.absolute(), self.root.name)

    def remove(self) -> None:
        """What cannot be removed now, the next call removes; another one may be doing so at this moment."""
        shutil.rmtree(self.root, ignore_errors=True)

    def make_folders(self) -> None:
        for name in _FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def is_listed(self, manifest: Manifest) -> bool:
        """Whether shards that are done are in a manifest: what is left here is waste."""
        return not manifest.paths.isdisjoint(self._final_paths().values())

    def clear(self) -> None:
        """Forget every part: nothing is done. Not for what a manifest lists."""
        # Records first: without its record, what is left of a part is waste.
        for name in reversed(_FOLDERS):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in self._final_paths().values():
            (self.out / path).unlink(missing_ok=True)
        self._final_paths_file.unlink(missing_ok=True)
        self.make_folders()

    def shard_file(self, key: str) -> Path:
        return self.root / "shards" / f"{key}.parquet"

    def rejects_file(self, key: str) -> Path:
        return self.rejects_folder / f"{key}.tsv"

    def counts_file(self, key: str) -> Path:
        return self.root / "counts" / f"{key}.counts"

    def record_file(self, key: str) -> Path:
        return self.root / "done" / f"{key}.json"

    def has_records(self) -> bool:
        """Whether any part is done."""
        return any(self._record_files())

    def has_rows(self) -> bool:
        """Whether any part is done that has a row."""
        return any(record.rows for path in self._record_files() if (record := _read_record(path)))

    def find_record(self, part: Part) -> PartRecord | None:
        """The record of a part that is done, else None. Records are written last."""
        return _read_record(self.record_file(part.key))

    def load_plan(self) -> dict[str, Any] | None:
        """The plan that what is here was made from; None if there is none that can be read."""
        plan = _read_json(self.plan_file)
        return plan if isinstance(plan, dict) and {"sources", "format"} <= plan.keys() else None

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        write_atomically(self.plan_file, json.dumps(plan, indent=1).encode())

    def discard_damaged(self) -> list[str]:
        """Forget the parts whose files are not what their records say, so that they are encoded again.

        What was wrong with each; one that vanished, shrank or was emptied is found by its size alone.
        """
        moved = self._final_paths()
        found = []
        for path in sorted(self._record_files()):
            record = _read_record(path)
            problem = f"{path} is damaged" if record is None else self._problem(record, moved)
            if problem:
                path.unlink()
                found.append(problem)
        return found

    def move_shards(self, final_paths: Mapping[str, str]) -> None:
        """Give staged shards, by key, their final names below the data folder.

        May be repeated after a crash: which names were meant is kept first, so that the shards are found by either.
        """
        write_atomically(self._final_paths_file, json.dumps(dict(final_paths)).encode())
        for key, path in final_paths.items():
            staged = self.shard_file(key)
            if staged.exists():
                (self.out / path).parent.mkdir(exist_ok=True)
                staged.replace(self.out / path)

    def _problem(self, record: PartRecord, moved: Mapping[str, str]) -> str | None:
        """Which file of a part that is done is not what its record says, and why; None if all are."""
        expected = [(self.counts_file(record.key), record.counts_bytes)]
        if record.rejected_rows:
            expected.append((self.rejects_file(record.key), record.rejects_bytes))
        if record.rows:
            staged = self.shard_file(record.key)
            final = self.out / moved[record.key] if record.key in moved else staged
            expected.append((staged if staged.exists() else final, record.shard_bytes))
        for path, size in expected:
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                return f"{path} is missing"
            if found != size and (size is not None or found == 0):
                return f"{path} has {found:,} bytes" + ("" if size is None else f" instead of {size:,}")
        return None

    def _record_files(self) -> Iterator[Path]:
        return (self.root / "done").glob("*.json")

    def _final_paths(self) -> dict[str, str]:
        paths = _read_json(self._final_paths_file)
        return paths if isinstance(paths, dict) else {}


def save_record(place: Workplace, record: PartRecord) -> None:
    """Make the part of `record` done."""
    write_atomically(place.record_file(record.key), json.dumps(asdict(record)).encode())


def _read_record(path: Path) -> PartRecord | None:
    values = _read_json(path)
    try:
        return PartRecord(**values) if isinstance(values, dict) else None
    except TypeError:  # another set of fields
        return None


def _read_json(path: Path) -> Any:
    """What a file holds; None if it is missing or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
