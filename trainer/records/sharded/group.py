"""What ranks do together: each its part, and all of them fail if one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.errors import InputError, StorageError, cause_of


class RankFailedError(RuntimeError):
    """Another rank failed by something else than its disk; trying again would change nothing."""


class RanksDriftedError(RuntimeError):
    """Ranks have different values of what is the same on all: what they would go on with is of no one run."""


class SaveGroup(Protocol):
    """Ranks that write or read a checkpoint together; nobody else uses it meanwhile, so from its thread alone.

    The slowest rank's writing, or rank 0's hashing of a whole checkpoint, lies between two calls of `gather`: its
    time-out must allow for it.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """The small JSON values of all ranks, by rank, on each of them. Collective; may raise."""
        ...


def together(group: SaveGroup, act: Callable[[], Any]) -> list[Any]:
    """What `act`, called on every rank, gave on each: JSON values, by rank. Collective.

    Raises: if `act` did on any rank, on all the same kind of error, which names the rank: StorageError for an OSError,
    with its number; InputError for one; for others the rank's own on a rank that has one, RankFailedError on the rest.
    What `gather` raises goes on, and so does what is no Exception, at once.
    """
    own: Exception | None = None
    try:
        value = {"value": act()}
    except Exception as error:  # crosses to all ranks
        own, value = error, {"error": _told(error)}
    try:
        gathered = group.gather(value)
    except Exception as error:
        if own is not None:
            error.add_note(f"this rank itself failed before: {type(own).__name__}: {own}")
        raise
    failed = {rank: each["error"] for rank, each in enumerate(gathered) if "error" in each}
    if not failed:
        return [each["value"] for each in gathered]
    raise _shared(failed, group.ranks, own) from own


_OTHER, _INPUT, _STORAGE = "other", "input", "storage"
"""Kinds of errors; the first that any rank has is all ranks'."""


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        file = None if error.filename is None else str(error.filename)
        return {"kind": _STORAGE, "text": cause_of(error), "number": error.errno, "file": file}
    if isinstance(error, InputError):
        return {"kind": _INPUT, "text": cause_of(error)}
    return {"kind": _OTHER, "text": f"{type(error).__name__}: {cause_of(error)}"}


def _shared(failed: dict[int, dict[str, Any]], ranks: int, own: Exception | None) -> Exception:
    kind = next(kind for kind in (_OTHER, _INPUT, _STORAGE) if any(each["kind"] == kind for each in failed.values()))
    if kind == _OTHER and own is not None and _told(own)["kind"] == _OTHER:
        return own
    rank, error = next((rank, each) for rank, each in failed.items() if each["kind"] == kind)
    alike = [
        str(rank)
        for rank, each in failed.items()
        if (each["text"], each.get("number")) == (error["text"], error.get("number"))
    ]
    who = f"rank {rank}" if len(alike) == 1 else f"ranks {', '.join(alike)}"
    text = f"{who} of {ranks}: {error['text']}"
    if kind == _OTHER:
        return RankFailedError(text)
    if kind == _INPUT:
        return InputError(text)
    if error["number"] is None:
        return StorageError(text)
    return StorageError(error["number"], text, error["file"])
