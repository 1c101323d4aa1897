"""The ways a pipeline call fails through no fault of its own; each names the thing, its state and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used: a path, an option, a log line (exit code 2)."""


class StorageError(OSError):
    """Reading or writing failed, or what was read is damaged (exit code 74)."""


class FetchError(StorageError):
    """Rows that lie elsewhere could not be brought here, which says nothing about whether they are damaged."""


class DamagedRowsError(StorageError):
    """Rows are damaged, which somebody who trains on them may pass over."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
        """Where and how, without what to do about it."""


class ReadFailedError(StorageError):
    """A read failed, however often it was tried again; reading it once more changes nothing."""


class UnseenDamageError(StorageError):
    """A page whose checksum is right holds what it must not: whoever reads other rows of it does not see that."""


class InterruptedWaitError(Exception):
    """A wait for rows was ended before they came, because something else was asked for; nothing is lost by it."""


class NoRowsYetError(Exception):
    """All rows of a log that is followed have been handed out; more come once a generation is added to it."""


def cause_of(error: BaseException) -> str:
    """The reason alone, on one line, without what Python adds around it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
