"""A run directory: one writer, its configuration, its records, and where they stood at each checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipeline.addresses import shown_path, uri_of
from pipeline.reads import CLOSE_SECONDS, ReaderThreads
from pipeline.shards import MANIFEST, write_atomically
from trainer.config import FIXED_SECTIONS, Config, ConfigError, config_to_toml, differing_keys
from trainer.job.decided import CONFIG, kept_settings, with_delay
from trainer.job.learner import training_device
from trainer.records import Extent, Records, checkpoint_steps, thinning

RECORD_FILES = ("steps", "alpha", "horizon", "evals", "events")
TEXTFILE = "metrics.prom"
"""What Prometheus would read, as it was when the run ended."""
ONE_A_STEP = ("steps", "alpha")
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
    "model.factory_folder",
    "optimizer.factory_folder",
)
"""Where rows and factories lie, how rows are read and tables moved; whether they are the same, the checkpoint tells."""
FIXED_KEYS = ("stepsize.delay",)
"""What no continued run may change although other keys of the section may."""
SANCTIONED_KEYS = ("optimizer.lr",)
"""Of the fixed sections, what a continued run may change, so that a rate that was wrong can be put right."""


DATA_ENDINGS = (".tsv", ".csv", ".gz", ".zst", ".bz2", ".xz", ".parquet")
"""Nothing that belongs into a run's directory ends so; notes, logs of the run or its TOML file may lie there."""


class RunDirectory:
    """RUN, held by this process from construction to `close`.

    `config` is resolved; if there is a checkpoint, it must learn from and with what RUN/config.toml does. `begin` keeps
    it there. A directory that was made for a run that did not begin is removed again.
    Raises: ConfigError if another process holds the run, its checkpoints come from other settings, or the path cannot
    be a run directory.
    """

    writes = True
    """Whether this process writes what is in it, but for its rows of checkpoints."""

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path = Path(path)
        if uri_of(self.path) is not None:
            raise ConfigError(
                f"{shown_path(self.path)}: a run is written to a local folder; name one, and copy it after"
            )
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
        self._made_for_nothing = not self.path.exists()
        """So far: it was made by this process, and its run has not begun."""
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
            stack.callback(self._remove_if_unbegun)
            self.before = self._kept()
            """The settings so far, of a run that has checkpoints; else None."""
            self.changes = self._sanctioned_changes(config)
            """Keys that are set otherwise than they were, with both values: now, and then."""
            self.records = {
                name: stack.enter_context(
                    closing(
                        Records(self.path / f"{name}.jsonl", one_a_step=name in ONE_A_STEP, never_cut=name == "events")
                    )
                )
                for name in RECORD_FILES
            }
            self._config = config
            self._saved_at = 0
            """Step of the latest checkpoint that was begun; it may not have its name yet."""
            self._threads = ReaderThreads(1, name="thinning")
            stack.callback(self._threads.close)
            self._thinning = list[Future[None]]()
            self._open = stack.pop_all()

    def _remove_if_unbegun(self) -> None:
        """While the lock is held still."""
        if self._made_for_nothing:
            with suppress(OSError):
                for name in ("lock", TEXTFILE, *(f"{name}.jsonl" for name in RECORD_FILES)):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()

    def _stranger(self) -> str | None:
        """A file of a folder that is somebody's data: the run's files do not belong beside it."""
        if not self.path.is_dir() or any((self.path / name).exists() for name in ("lock", CONFIG, "steps.jsonl")):
            return None
        data = (file.name for file in self.path.iterdir() if file.suffix.lower() in DATA_ENDINGS and file.is_file())
        return min(data, default=None)

    def _kept(self) -> Config | None:
        try:
            return kept_settings(self.path)
        except ConfigError as error:
            raise ConfigError(
                f"{error} (written by another version?); correct that file, or delete it to continue the run with "
                "the settings given now"
            ) from None

    def _sanctioned_changes(self, config: Config) -> list[tuple[str, Any, Any]]:
        if self.before is None:
            return []
        config, before = (with_delay(settings, training_device()) for settings in (config, self.before))
        sections = tuple(section.name for section in fields(Config))
        changes = [change for change in differing_keys(config, before, sections=sections) if change[0] not in FREE_KEYS]
        for key, now, then in changes:
            if key in FIXED_KEYS or (key.split(".")[0] in FIXED_SECTIONS and key not in SANCTIONED_KEYS):
                other = "train another loss" if key.startswith("loss.") else "be another model or other rows"
                what = "hand estimates over at other steps" if key in FIXED_KEYS else other
                raise ConfigError(
                    f"{self.path}: was started with {key} = {then!r}, now it is {now!r}, which would {what}; change it "
                    "back to continue, or give another --run"
                )
        return changes

    def event(self, event: str, **values: Any) -> None:
        """One line in events.jsonl: Unix time in seconds, what happened, and its numbers."""
        self.records["events"].append({"time": time.time(), "event": event, **values})
        self.records["events"].flush()

    def lengths(self) -> dict[str, Any]:
        """Bytes of each record file as it is now; a resume may rely on them once `sync` has put them on disk.

        Under `extents` the last step and the number of the records in each, which find the place again in a file that
        was rewritten or cut since; of the event log, which is never cut, they tell what is missing.
        """
        self._saved_at = self.records["steps"].extent.last_step + 1
        lengths: dict[str, Any] = {name: file.length() for name, file in self.records.items()}
        return lengths | {"extents": {name: list(file.extent) for name, file in self.records.items()}}

    def sync(self) -> None:
        """Puts on disk what `lengths` counted, as far as it can be written; in any thread, while training goes on."""
        for records in self.records.values():
            records.sync()

    def begin(self, config: Config, *, records: Mapping[str, Any]) -> None:
        """Keeps the settings, and cuts the records back to a checkpoint's `lengths`; the event log keeps everything.

        What is missing of those records `notices` tell.
        """
        text = config_to_toml(config).encode()
        if not (self.path / CONFIG).is_file() or (self.path / CONFIG).read_bytes() != text:  # a full disk may stay full
            write_atomically(self.path / CONFIG, text)
        self._made_for_nothing = False
        self.cut(records)

    def cut(self, records: Mapping[str, Any]) -> None:
        """Cuts the records but the event log back to a checkpoint's `lengths`."""
        for name, file in self.records.items():
            extent = records.get("extents", {}).get(name)  # checkpoints of earlier versions have none
            file.cut(records.get(name, 0), extent and Extent(*extent))

    @property
    def full_steps(self) -> int:
        """The newest steps that keep a line each; 0: all do."""
        return self._config.records.full_steps

    def thin(self, *, done: int) -> None:
        """Merges old lines after `done` steps, if that is due: each time that `records.full_steps` more are.

        In a thread, which takes the files as they are now: what is appended meanwhile waits in memory, and a checkpoint
        for its end. Merged or not, every checkpoint is continued from with exactly the records before it.
        """
        full_steps = self.full_steps
        if not full_steps or done % full_steps:
            return
        checkpoints = [self._saved_at, *checkpoint_steps(self.path)]
        # an estimate is recorded that many steps after its own
        delays = {"steps": 0, "alpha": self._config.stepsize.delay or 0}
        self._thinned()  # the time before's, which has long ended unless the disk holds it
        works = list[Callable[[], None]]()
        for name in ONE_A_STEP:
            path, kept = self.records[name].path, [step - delays[name] for step in checkpoints]
            plan = partial(thinning, path, done=done, full_steps=full_steps, checkpoints=kept)
            if (work := self.records[name].rewriting(plan)) is not None:
                works.append(work)
        self._thinning = [self._threads.submit(work) for work in works]

    def _thinned(self, seconds: float | None = None) -> None:
        """Waits for what `thin` began, `seconds` at most. Raises: its errors, which are none of the system."""
        for work in self._thinning:
            with suppress(TimeoutError):
                work.result(seconds)
        self._thinning = []

    def flush(self) -> None:
        for records in self.records.values():
            records.flush()

    def close(self) -> None:
        with self._open:
            self._thinned(CLOSE_SECONDS)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
