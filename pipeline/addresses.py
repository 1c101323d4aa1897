"""Names of files as users give them: local paths, and URIs that pyarrow.fs opens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, cause_of

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs


def is_remote(name: str | Path) -> bool:
    """Whether a name is a URI, to be opened through pyarrow.fs, and no local path."""
    return "://" in str(name)


def without_secrets(uri: str) -> str:
    """A URI without the user and password that it may carry, also where a password's slashes are not escaped.

    A user without a password stays: who it is, is not a secret.
    """
    port = r"(?!\d+/)" if uri.startswith(("hdfs:", "viewfs:")) else ""  # buckets have none, and a key may begin so
    return re.sub(rf"://[^/@:]*:{port}[^@?]*@", "://", uri, count=1)


def open_filesystem(uri: str) -> tuple[arrow_fs.FileSystem, str]:
    """The file system that a URI names, and the path in it.

    Raises: InputError for a URI that pyarrow.fs does not understand.
    """
    import pyarrow as pa  # here, because every configuration holds an address and few of them are remote
    from pyarrow import fs as arrow_fs

    try:
        return arrow_fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        shown = without_secrets(uri)
        cause = cause_of(error).replace(uri, shown)
        raise InputError(f"{shown} cannot be opened ({cause}); check the address and its credentials") from None
