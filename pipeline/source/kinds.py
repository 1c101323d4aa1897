"""Files that are not delimited text, told by their first bytes, each with what to do about it."""

from __future__ import annotations

import json

from pipeline.source.packing import packing_of

HEAD_BYTES = 1024
"""How many first bytes tell what a source holds."""
UTF8_BOM = b"\xef\xbb\xbf"

_UNPACK = "unpack it and name the files in it, or pipe them in with -"
_TABLE = "export it as delimited text (DuckDB's COPY ... TO 'log.tsv' does)"
_DECOMPRESS = "decompress it, or compress it with gzip or zstd instead"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a Zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty Zip archive", _UNPACK),
    (b"PK\x07\x08", "a Zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"!<arch>\n", "an ar archive", _UNPACK),
    (b"PAR1", "a Parquet file", _TABLE),
    (b"PARE", "an encrypted Parquet file", _TABLE),
    (b"ORC", "an ORC file", _TABLE),
    (b"Obj\x01", "an Avro file", _TABLE),
    (b"ARROW1", "an Arrow file", _TABLE),
    (b"FEA1", "a Feather file", _TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream", _TABLE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TABLE),
    (b"SQLite format 3\0", "a SQLite database", _TABLE),
    (b"SEQ\x06", "a Hadoop sequence file", _TABLE),
    (b"RCF\x01", "an RCFile", _TABLE),
    (b"\x93NUMPY", "a NumPy array", _TABLE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _TABLE),
    (b"%PDF-", "a PDF document", "name a log of delimited lines"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _DECOMPRESS),
    (b"\x02\x21\x4c\x18", "compressed with lz4 (legacy)", _DECOMPRESS),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy", _DECOMPRESS),
    (b"LZIP", "compressed with lzip", _DECOMPRESS),
    (b"\x89LZO\x00\r\n\x1a\n", "compressed with lzop", _DECOMPRESS),
    (b"\x1f\x9d", "compressed with compress (.Z)", _DECOMPRESS),
    (b"\x1f\xa0", "compressed with compress (LZH)", _DECOMPRESS),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself", "fetch it with git lfs pull"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)
_ALSO_TEXT = (b"ORC", b"PARE", b"FEA1", b"ARROW1", b"LZIP")
"""What the header of a text file may begin with too."""
_MARKUP = (b"<!doctype", b"<html", b"<?xml")


def foreign_kind(head: bytes) -> str | None:
    """What unpacked bytes that begin so are, other than delimited text in UTF-8, and the remedy; else None."""
    if head and not any(head):
        return "begins with zero bytes alone; fetch it again"
    binary = any(byte < 9 for byte in head)
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic) and (binary or magic not in _ALSO_TEXT):
            return f"is {what}; {remedy}"
    if packing := packing_of(head):
        return f"is packed twice (there is {packing} inside); unpack it once"
    if _is_tar(head):
        return f"is a tar archive; {_UNPACK} (tar -xOf gives their bytes)"
    if len(head) >= 4 and not any(head[1::2]):
        return "is UTF-16 text; convert it to UTF-8 (iconv -f UTF-16LE -t UTF-8)"
    if len(head) >= 4 and not any(head[::2]):
        return "is UTF-16 text; convert it to UTF-8 (iconv -f UTF-16BE -t UTF-8)"
    text = head.removeprefix(UTF8_BOM).lstrip()
    if text[:16].lower().startswith(_MARKUP):
        return "is a web page or XML; check what was downloaded, and fetch the log again"
    if _is_json(text):
        return "holds JSON; write its values as delimited text (jq -r '[...] | @tsv' does)"
    if head.count(b"\r") > 1 and b"\n" not in head:
        return "ends its lines with carriage returns alone; convert it (tr '\\r' '\\n')"
    return None


def _is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a tar header: its checksum fits."""
    block = head[:512]
    if len(block) < 512:
        return False
    try:
        stored = int(block[148:156].strip(b"\0 ") or b"-1", 8)
    except ValueError:
        return False
    return stored == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _is_json(text: bytes) -> bool:
    """Whether the first line, or what was read of it, is a JSON object or a list of them, and nothing behind it."""
    line, newline, _ = text.partition(b"\n")
    line = line.strip()
    if line in (b"{", b"["):
        return True
    if not line.startswith((b'{"', b"[{")):
        return False
    shown = line.decode("utf-8", "replace")
    try:
        _, stop = json.JSONDecoder().raw_decode(shown)
    except (ValueError, RecursionError):
        return not newline and '":' in shown
    return not shown[stop:].strip(" ,]")
