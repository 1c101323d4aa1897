"""Click logs to Parquet shards, and shards to pairs of batches (B1, B2).

Its rooms, in the order of a row's way; each says in its first line what it is for, and exports what others may use.

    preprocess, once or day by day           a log's bytes → shards
        source         a log's bytes → blocks of whole lines
        encode         lines → columns
        parquet        columns → pages of a shard, and back
        shards         a data folder: its manifest and the files of its shards
        preprocess     the command that does all of this
        sample         logs of the same shape, to try it on
    reading, at every step of a training run   shards → pairs on the device
        shards, parquet → rows → device
        lines          a log's lines → rows in their order, to be scored
"""
