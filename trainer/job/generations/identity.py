"""Which generations of a data folder a run is of, and whether they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.device import Feed
from pipeline.schema import LogFormat
from pipeline.shards import Manifest, Split
from trainer.config import Config, ConfigError
from trainer.console import Console
from trainer.job.learner import model_columns
from trainer.records import stored_value

GENERATIONS = "generations"
"""Key of a checkpoint's state: the hash of the training rows of each generation, in order. Those of earlier versions
have none, and one generation."""


def pinned(manifest: Manifest, config: Config, run: Path) -> Manifest:
    """`manifest`, or the folder as it was when the run at `run` began, if that is continued and follows no log.

    Raises: InputError if generations that it began with are gone.
    """
    if config.data.follow:
        return manifest
    hashes = stored_value(run, GENERATIONS)
    if hashes is None and stored_value(run, "data") is None:
        return manifest  # there is nothing to continue
    return manifest.upto(1 if hashes is None else len(hashes))


def seen_by(feed: Feed, manifest: Manifest) -> Manifest:
    """The data as far as the run has come: all of `manifest`, or, where a log is followed, the generations begun.

    A function of the feed's position, whatever was added since; 1 generation at least.
    """
    if feed.log is None:
        return manifest
    position = feed.position
    return feed.log.manifest.upto(max(position.epoch + (position.row > 0), 1))


def data_identity(manifest: Manifest) -> dict[str, Any]:
    """What tells one training split from another wherever it lies: its columns and the content of its shards; and that
    of each generation. With it, how the lines were encoded that its rows are of."""
    return {
        "format": manifest.format.to_dict(),
        "data": _identity(manifest.format, manifest.splits["train"]),
        GENERATIONS: [_content(generation.splits["train"]) for generation in manifest.generations],
    }


def refuse_other_rows(state: Mapping[str, Any], manifest: Manifest, *, run: Path) -> None:
    """Makes sure that `manifest` begins with the generations that a checkpoint's `state` was trained on.

    Raises: ConfigError naming the first that does not; InputError if they are fewer.
    """
    before = state.get(GENERATIONS, [None])
    now = data_identity(manifest.upto(len(before)))
    if now["data"] == state["data"]:
        return
    changed = [
        index
        for index, (one, other) in enumerate(zip(before, now[GENERATIONS], strict=True))
        if one is not None and one != other
    ]
    which = f" in generation {changed[0]}" if changed and len(before) > 1 else ""
    raise ConfigError(
        f"{run}: was trained on other rows than data.path holds now{which}; give the data folder it was started "
        "with, or another --run"
    )


def say_what_is_left_out(folder: Manifest, used: Manifest, console: Console) -> None:
    """Says that the folder has grown since a run began that doesn't follow it."""
    all_of, begun_with = len(folder.generations), len(used.generations)
    if all_of > begun_with:
        console.say(
            f"{folder.folder} has {all_of} generations, and this run goes on with the {begun_with} that it began with; "
            "train on later ones in a new run, or with data.follow = true from the start"
        )


def _identity(log_format: LogFormat, split: Split) -> dict[str, Any]:
    return {"columns": model_columns(log_format), "train": _content(split)}


def _content(split: Split) -> str:
    return hashlib.sha256("".join(shard.sha256 for shard in split.shards).encode()).hexdigest()
