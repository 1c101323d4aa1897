"""A data folder: its manifest, writing and verifying shards, and where their files are (local, remote, cached).

>>> manifest = Manifest.load("data")
>>> [shard.row_groups for shard in manifest.splits["train"].shards]
[(7, 7, 7, 2), (7, 7, 5), (7, 7, 7, 7, 7)]
>>> verify_data("data").whole
True
"""

from __future__ import annotations

from pipeline.shards.durable import free_bytes, sync_file, sync_folder, write_atomically
from pipeline.shards.manifest import MANIFEST, Compression, Manifest, RejectsFile, Shard, Split
from pipeline.shards.overview import (
    Overview,
    describe_files,
    files_by_split,
    inspect_data,
    warnings_of,
    warnings_of_labels,
)
from pipeline.shards.page_cache import kept_cold, why_not_dropped
from pipeline.shards.row_groups import codec_of, read_row_group
from pipeline.shards.shard_files import DOWNLOAD_THREADS, ShardFiles, cache_folder, check_cache, open_shards
from pipeline.shards.verify import DataReport, VerifyProgress, verify_data
from pipeline.shards.writer import ShardWriter, columns_of

__all__ = [
    "DOWNLOAD_THREADS",
    "MANIFEST",
    "Compression",
    "DataReport",
    "Manifest",
    "Overview",
    "RejectsFile",
    "Shard",
    "ShardFiles",
    "ShardWriter",
    "Split",
    "VerifyProgress",
    "cache_folder",
    "check_cache",
    "codec_of",
    "columns_of",
    "describe_files",
    "files_by_split",
    "free_bytes",
    "inspect_data",
    "kept_cold",
    "open_shards",
    "read_row_group",
    "sync_file",
    "sync_folder",
    "verify_data",
    "warnings_of",
    "warnings_of_labels",
    "why_not_dropped",
    "write_atomically",
]
