"""Lines that the kernel rejected: where they stood, why, and how a file of them is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.encode.kernel import Rejects
from pipeline.encode.tsv import reason
from pipeline.schema import LogFormat


class Rejected(NamedTuple):
    """A line that holds no row."""

    index: int
    """Its place among the lines that were taken with it, from 0."""
    reason: str
    line: bytes
    """Without its line end."""

    def as_row(self, address: str, number: int) -> bytes:
        """As a file of rejects has it: source, line number from 1, reason and the line, with tabs between them."""
        # A file name need not be UTF-8; written as it is, it can be found again.
        name = address.encode("utf-8", "surrogateescape")
        return b"\t".join((name, str(number).encode(), self.reason.encode(), self.line)) + b"\n"


def rejected_lines(log_format: LogFormat, buffer: np.ndarray, rejects: Rejects, count: int) -> Iterator[Rejected]:
    """The `count` lines of `buffer` that `parse` left in `rejects`."""
    for i in range(count):
        line = buffer[rejects.starts[i] : rejects.stops[i]].tobytes()
        why = reason(log_format, int(rejects.codes[i]), int(rejects.fields[i]), line)
        yield Rejected(int(rejects.lines[i]), why, line)
