"""Files and renames that a crash of the machine cannot undo or tear, and the room that there is for them."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

_NO_SUCH_CALL = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` such that a crash leaves the old or the new, whole and durable.

    Raises: OSError, with `path` as it was and nothing left beside it, where the disk is full or fails.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    sync_folder(path.parent)


def sync_descriptor(file: int) -> None:
    """Make what was written to an open file, or the renames within an open folder, durable.

    Where its file system has no such call, as some over a network have none for folders, nothing can be done, and that
    is no error: `why_not_synced` tells.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise


def why_not_synced(folder: Path) -> str | None:
    """Why nothing in `folder` can be made durable, in the system's words; None if it can. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
        return error.strerror
    finally:
        os.close(descriptor)
    return None


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    with path.open("rb") as file:
        sync_descriptor(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """What may still be written to the disk that `path`, which need not exist, lies on; quotas are not looked at."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
