"""A data folder: its manifest, writing and verifying shards, and where their files are (local, remote, cached).

>>> manifest = Manifest.load("data")
>>> [shard.row_groups for shard in manifest.splits["train"].shards]
[(7, 7, 7, 2), (7, 7, 5), (7, 7, 7, 7, 7)]
>>> verify_data("data").whole
True
"""

from __future__ import annotations

from pipeline.shards.durable import (
    free_bytes,
    sync_descriptor,
    sync_file,
    sync_folder,
    why_not_synced,
    write_atomically,
)
from pipeline.shards.manifest import (
    KEEP_NEGATIVES,
    MANIFEST,
    Compression,
    DistinctFile,
    Generation,
    Manifest,
    RejectsFile,
    Shard,
    Split,
    is_data_folder,
)
from pipeline.shards.overview import (
    AT_LEAST,
    AT_MOST,
    Overview,
    bounds_of,
    describe_files,
    files_by_split,
    files_of,
    inspect_data,
    sampling_of,
    warnings_of,
    warnings_of_addition,
    warnings_of_labels,
)
from pipeline.shards.page_cache import kept_cold, why_not_dropped
from pipeline.shards.remote import RemoteFolder
from pipeline.shards.row_groups import codec_of, read_row_group
from pipeline.shards.shard_files import DOWNLOAD_THREADS, ShardFiles, cache_folder, check_cache, open_shards
from pipeline.shards.verify import DataReport, VerifyProgress, verify_data
from pipeline.shards.writer import ShardWriter, columns_of

__all__ = [
    "AT_LEAST",
    "AT_MOST",
    "DOWNLOAD_THREADS",
    "KEEP_NEGATIVES",
    "MANIFEST",
    "Compression",
    "DataReport",
    "DistinctFile",
    "Generation",
    "Manifest",
    "Overview",
    "RejectsFile",
    "RemoteFolder",
    "Shard",
    "ShardFiles",
    "ShardWriter",
    "Split",
    "VerifyProgress",
    "bounds_of",
    "cache_folder",
    "check_cache",
    "codec_of",
    "columns_of",
    "describe_files",
    "files_by_split",
    "files_of",
    "free_bytes",
    "inspect_data",
    "is_data_folder",
    "kept_cold",
    "open_shards",
    "read_row_group",
    "sampling_of",
    "sync_descriptor",
    "sync_file",
    "sync_folder",
    "verify_data",
    "warnings_of",
    "warnings_of_addition",
    "warnings_of_labels",
    "why_not_dropped",
    "why_not_synced",
    "write_atomically",
]
