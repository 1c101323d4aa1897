"""A run directory: one writer, its configuration, its records, and where they stood at each checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipeline.shards import MANIFEST, write_atomically
from trainer.config import FIXED_SECTIONS, Config, ConfigError, config_to_toml, differing_keys
from trainer.job.decided import CONFIG, kept_settings, with_delay
from trainer.job.learner import training_device
from trainer.records import Records, read_records

RECORD_FILES = ("steps", "alpha", "evals", "events")
FREE_KEYS = (
    "data.path",
    "data.cache_path",
    "data.cache_bytes",
    "data.prefetch_batches",
    "data.read_threads",
    "data.feed",
    "data.damaged",
    "data.follow_idle_seconds",
    "data.follow_poll_seconds",
    "data.retry_seconds",
    "optimizer.table",
)
"""Where the rows lie, how they are read, how tables are moved; whether the rows are the same, the checkpoint tells."""


DATA_ENDINGS = (".tsv", ".csv", ".gz", ".zst", ".bz2", ".xz", ".parquet")
"""Nothing that belongs into a run's directory ends so; notes, logs of the run or its TOML file may lie there."""


class RunDirectory:
    """RUN, held by this process from construction to `close`.

    `config` is resolved; if there is a checkpoint, it must compute what RUN/config.toml does. `begin` keeps it there.
    Raises: ConfigError if another process holds the run, its checkpoints come from other settings, or the path cannot
    be a run directory.
    """

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path = Path(path)
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:  # safetensors can write there, and not read
            raise ConfigError(f"{self.path}: the name is not UTF-8; give another directory for the run") from None
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; give a directory for the run")
        if (self.path / MANIFEST).exists():
            raise ConfigError(f"{self.path}: is a data folder; give another directory for the run")
        if stranger := self._stranger():
            raise ConfigError(f"{self.path}: holds {stranger} and no run; give another directory for the run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise ConfigError(f"{self.path}: cannot be made ({error.strerror}); give another --run") from None
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(self.path / "lock", timeout=0))
            except Timeout:
                raise ConfigError(
                    f"{self.path}: another process is writing this run; wait for it, or give another --run"
                ) from None
            self._refuse_changes(config)
            self.records = {
                name: stack.enter_context(closing(Records(self.path / f"{name}.jsonl"))) for name in RECORD_FILES
            }
            self._open = stack.pop_all()

    def _stranger(self) -> str | None:
        """A file of a folder that is somebody's data: the run's files do not belong beside it."""
        if not self.path.is_dir() or any((self.path / name).exists() for name in ("lock", CONFIG, "steps.jsonl")):
            return None
        data = (file.name for file in self.path.iterdir() if file.suffix.lower() in DATA_ENDINGS and file.is_file())
        return min(data, default=None)

    def _refuse_changes(self, config: Config) -> None:
        try:
            before = kept_settings(self.path)
        except ConfigError as error:
            raise ConfigError(
                f"{error} (written by another version?); correct that file, or delete it to continue the run with "
                "the settings given now"
            ) from None
        if before is None:
            return
        config, before = (with_delay(settings, training_device()) for settings in (config, before))
        for key, now, then in differing_keys(config, before, sections=FIXED_SECTIONS):
            if key not in FREE_KEYS:
                raise ConfigError(
                    f"{self.path}: was started with {key} = {then!r}, now it is {now!r}; "
                    "change it back to continue, or give another --run"
                )

    def event(self, event: str, **values: Any) -> None:
        """One line in events.jsonl: Unix time in seconds, what happened, and its numbers."""
        self.records["events"].append({"time": time.time(), "event": event, **values})
        self.records["events"].flush()

    def starts(self) -> int:
        """How many processes have begun or continued this run so far, by its event log."""
        events = read_records(self.path / "events.jsonl", damaged=lambda _: None)
        return sum(record.get("event") in ("start", "resume") for record in events)

    def lengths(self) -> dict[str, int]:
        """Bytes of each record file as it is now; a resume may rely on them once `sync` has put them on disk."""
        return {name: records.length() for name, records in self.records.items() if name != "events"}

    def sync(self) -> None:
        """Puts on disk what `lengths` counted; in any thread, while training goes on."""
        for name, records in self.records.items():
            if name != "events":
                records.sync()

    def begin(self, config: Config, *, records: Mapping[str, int]) -> None:
        """Keeps the settings, and cuts the records back to a checkpoint's lengths; the event log keeps everything."""
        write_atomically(self.path / CONFIG, config_to_toml(config).encode())
        for name, file in self.records.items():
            if name != "events":
                file.cut(records.get(name, 0))

    def flush(self) -> None:
        for records in self.records.values():
            records.flush()

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
