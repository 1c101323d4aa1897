"""Files as users name them: local paths, URIs that pyarrow.fs opens, and TOML files of a size that is meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, cause_of

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs


SETTINGS_BYTES = 1 << 20
"""A larger TOML file is taken for something else, a log for instance, and not read."""


def read_settings(path: Path) -> bytes:
    """The bytes of a local TOML file.

    Raises: InputError for a file that is too large to be one; OSError or ValueError if it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(SETTINGS_BYTES + 1)
    if len(content) > SETTINGS_BYTES:
        raise InputError("has more than a megabyte, and no TOML file of settings has; check the path")
    return content


def is_remote(name: str | Path) -> bool:
    """Whether a name is a URI, to be opened through pyarrow.fs, and no local path."""
    return "://" in str(name)


def uri_of(path: Path) -> str | None:
    """The URI that a path was given as, whose slashes a Path joins into one; None for a local path."""
    found = re.match(r"(?P<scheme>[a-z][a-z0-9+.-]+):/(?=[^/])", str(path))
    if found is None:
        return None
    slashes = ":///" if found["scheme"] == "file" else "://"
    return found["scheme"] + slashes + str(path)[found.end() :]


def shown_path(path: Path) -> str:
    """A path or the URI that it was given as, as it may be shown."""
    uri = uri_of(path)
    return str(path) if uri is None else without_secrets(uri).partition("?")[0]


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
