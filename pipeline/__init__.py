"""Click logs to Parquet shards, and shards to pairs of batches (B1, B2).

Its files, in the order of a row's way; each says what it does in its first line.

    a log's bytes      source, stream → blocks (newlines)
    what is to be done plan, parts, job, formats, forecast
    who does it        preprocess → engine (tasks) or ray_engine → encode
    lines to columns   tsv, kernel (farmhash); counted in statistics
    columns to shards  shards, parquet (dictionary); looked at by overview and verify
    shards to bytes    shard_files: local, or remote (remote, shard_cache)
    bytes to columns   groups, pages, runs, columns (buffers)
    columns to rows    order, reader
    rows to pairs      pairs
    pairs to a device  device → feed → ring or dali (packed, transform)
    beside the way     schema, errors, stages, page_cache, sample
"""
