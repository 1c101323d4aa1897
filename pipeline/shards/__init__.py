"""A data folder: its manifest, writing and verifying shards, and where their files are (local, remote, cached)."""

from __future__ import annotations

from pipeline.shards.durable import sync_file, sync_folder, write_atomically
from pipeline.shards.manifest import MANIFEST, Compression, Manifest, RejectsFile, Shard, Split
from pipeline.shards.overview import Overview, inspect_data
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
    "inspect_data",
    "kept_cold",
    "open_shards",
    "read_row_group",
    "sync_file",
    "sync_folder",
    "verify_data",
    "why_not_dropped",
    "write_atomically",
]
