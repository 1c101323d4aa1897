"""What an interrupted predict left beside its output: gone on with, kept for who can, or dropped with a word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.source import describe_source

PARTIAL = ".partial"
STATE = "state.json"
_OTHER = {
    "run": "of another run",
    "weights": "by other weights",
    "format": "of another format",
    "sources": "of other lines",
    "shards": "of other rows",
    "labelled": "with another --labels",
    "weighted": "with other sample weights",
    "rejects": "with another --rejects",
    "once": "of standard input",
}


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """How far an earlier call came, and for what."""

    identity: Mapping[str, Any]
    lines: int
    rows: int
    rejects_bytes: int = 0
    ending: bool = False
    """Whether all lines were done, and files were given their names."""

    @classmethod
    def beside(cls, out: Path) -> Leftover | None:
        """None if there is nothing that can be read."""
        try:
            return cls(**json.loads((partial_folder(out) / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def differs(self, identity: Mapping[str, Any]) -> str | None:
        """In what its scores are not those of `identity`, in words; None if they are."""
        if dict(self.identity) == dict(identity):
            return None
        if self._same(identity, "run") and not self._same(identity, "step"):
            return f"by the weights of step {self.identity.get('step')}, and this is step {identity.get('step')}"
        return next((text for key, text in _OTHER.items() if not self._same(identity, key)), "of another version")

    def finished_by(self, identity: Mapping[str, Any]) -> str:
        """What to do to finish it, where `identity` is another's."""
        again = "run that command again"
        same_step = self._same(identity, "step") or not self._same(identity, "run")
        return again if same_step else f"{again} with --checkpoint {self.identity.get('step')}"

    def can_be_finished(self) -> bool:
        """Whether its weights and lines are there as they were, for the same command to go on with."""
        try:
            wanted = self.identity["weights"]
            checkpoints = Path(self.identity["run"], "checkpoints").rglob("manifest.json")
            if not any(hashlib.sha256(path.read_bytes()).hexdigest() == wanted for path in checkpoints):
                return False
            return all(_is_as_it_was(*each) for each in self.identity.get("sources", ()))
        except (KeyError, TypeError, InputError):
            return False
        except OSError:  # who is not reached now may be there again later
            return True

    def _same(self, identity: Mapping[str, Any], key: str) -> bool:
        return self.identity.get(key) == identity.get(key)


def partial_folder(out: Path) -> Path:
    """Where the scores of `out` are while they are made."""
    return out.with_name(out.name + PARTIAL)


def _is_as_it_was(address: str, size: int | None, modified_ns: int | None) -> bool:
    if size is None:
        return False  # standard input has passed
    found = describe_source(address)
    return (found.size, found.modified_ns) == (size, modified_ns)
