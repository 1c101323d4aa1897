"""What `--append` would add to a data folder: the sources that are new to it, encoded as the folder is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.addresses import shown_path
from pipeline.errors import InputError
from pipeline.preprocess.config import PreprocessConfig
from pipeline.preprocess.formats import find_format, with_bucket_sizes
from pipeline.preprocess.generations.already import Sorted, earlier_sources, sort_sources
from pipeline.preprocess.plan import Plan, format_difference, split_rule
from pipeline.schema import LogFormat
from pipeline.shards import Manifest
from pipeline.source import check_sources, find_sources

_DEFAULTS = {
    "format": "criteo",
    "bucket_sizes": None,
    "rows_per_shard": 262_144,
    "compression": "lz4",
    "keep_negatives": 1.0,
}


class Addition(NamedTuple):
    """The next generation of a folder, if there is something to add."""

    plan: Plan | None
    """None: the folder has all sources."""
    notices: tuple[str, ...]


def plan_addition(config: PreprocessConfig, manifest: Manifest) -> Addition:
    """What the sources of `config` would add to a folder: those that it has already are left out.

    Raises: InputError for sources that cannot be used, that overlap with those of the folder or with one another, for
    options other than the folder's, and for a split rule that the sources do not allow.
    """
    _check_options(config, manifest)
    found, notices = find_sources(config.sources)
    parted = sort_sources(found, manifest.format, earlier_sources(manifest))
    notices = (*notices, *_notice(config.out, parted))
    if not parted.new:
        return Addition(plan=None, notices=notices)
    check_sources(parted.new, manifest.format)
    plan = Plan(
        sources=parted.new,
        log_format=manifest.format,
        split="train" if config.split == "auto" else split_rule(config.split, parted.new),
        validation=config.validation,
        test=config.test,
        rows_per_shard=manifest.plan.get("rows_per_shard", config.rows_per_shard),
        compression=manifest.compression,
        keep_negatives=manifest.negatives_kept,
        first_source=sum(len(generation.plan.get("sources", ())) for generation in manifest.generations),
        notices=notices,
    )
    return Addition(plan=plan, notices=notices)


def _notice(out: Path, parted: Sorted) -> Sequence[str]:
    """A line about sources that are left out, unless that is all that happens and each is what it was."""
    renamed = [(source, earlier) for source, earlier in parted.known if not earlier.is_unchanged(source)]
    lines = [
        f"{source.address} is left out: generation {earlier.generation} has its rows from {earlier.address}"
        for source, earlier in renamed[:3]
    ]
    if others := len(renamed) - len(lines):
        lines.append(f"{others:,} more are left out for the same reason")
    unchanged = len(parted.known) - len(renamed)
    if unchanged and parted.new:
        total = len(parted.known) + len(parted.new)
        lines.append(f"{unchanged:,} of {total:,} files are in {shown_path(out)} already and left out")
    return lines


def _check_options(config: PreprocessConfig, manifest: Manifest) -> None:
    """Raises: InputError for an option that was given and is not what the folder was made with."""
    given = {name for name, default in _DEFAULTS.items() if name in config.named or getattr(config, name) != default}
    own: dict[str, object] = {"compression": manifest.compression, "keep_negatives": manifest.negatives_kept}
    own["rows_per_shard"] = manifest.plan.get("rows_per_shard", config.rows_per_shard)
    for name, value in own.items():
        if name in given and getattr(config, name) != value:
            raise _other(config.out, f"{name.replace('_', '-')} {value}, not {getattr(config, name)}")
    if "format" in given:
        wanted = _same_buckets(find_format(config.format), manifest.format)
        if wanted != manifest.format:
            difference = format_difference(manifest.format.to_dict(), wanted.to_dict())
            raise _other(config.out, f"another format ({difference})")
    if config.bucket_sizes is not None:
        wanted = with_bucket_sizes(manifest.format, config.bucket_sizes)
        if wanted != manifest.format:
            difference = format_difference(manifest.format.to_dict(), wanted.to_dict())
            raise _other(config.out, f"other bucket sizes ({difference})")


def _same_buckets(wanted: LogFormat, own: LogFormat) -> LogFormat:
    """A format that was named, with the bucket sizes of the folder, which are an option of their own."""
    return replace(wanted, bucket_sizes=own.bucket_sizes) if wanted.sparse == own.sparse else wanted


def _other(out: Path, what: str) -> InputError:
    return InputError(
        f"{shown_path(out)} was made with {what}; leave the option out, as --append encodes a log like the rest of the "
        "folder"
    )
