"""The numbers that stand for things in the Parquet dialect of the shards: written by the writer, read by the decoder.

Names and numbers are those of parquet.thrift (github.com/apache/parquet-format) and of Thrift's compact protocol.
"""

from __future__ import annotations

# Type, ConvertedType, FieldRepetitionType
INT32 = 1
FLOAT = 4
UINT_8 = 11
REQUIRED, OPTIONAL = 0, 1

# Encoding; a reader also meets the older name of RLE_DICTIONARY
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8

# PageType
DATA_PAGE, DICTIONARY_PAGE = 0, 2

# CompressionCodec
UNCOMPRESSED, ZSTD, LZ4_RAW = 0, 6, 7

# Types of the compact protocol
STOP, TRUE, FALSE, BYTE, I16, I32, I64, BINARY, LIST, STRUCT = 0, 1, 2, 3, 4, 5, 6, 8, 9, 12

# Fields of PageHeader: the first four, then the one that describes a page of either kind
PAGE_TYPE, PAGE_SIZE, PAGE_STORED_SIZE, PAGE_CRC, DATA_PAGE_HEADER, DICTIONARY_PAGE_HEADER = 1, 2, 3, 4, 5, 7
# Fields of DataPageHeader and, the first two, of DictionaryPageHeader
NUM_VALUES, ENCODING, DEFINITION_LEVEL_ENCODING, REPETITION_LEVEL_ENCODING, STATISTICS = 1, 2, 3, 4, 5
