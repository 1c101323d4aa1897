"""A run of a few steps over a few rows, and how it ends."""

from __future__ import annotations

from pathlib import Path

from tests.resume import lasting, same_bits
from tests.tiny_data import write_tiny

SAVES = (2, 4, 6)
"""The steps that the small run saves, the last at its end."""
SETTINGS = """
[data]
path = "{data}"
batch_rows = 8
[model]
table_rows = 16
embedding_dim = 2
bottom = [2]
top = [2, 1]
[optimizer]
average = "ema"
[stepsize]
policy = "observe"
interval = 2
count = 1
[budget]
steps = 6
[eval]
every_steps = 3
[checkpoint]
every_steps = 2
keep = 1
keep_best = false
[metrics]
port = -1
"""


def small_run(folder: Path) -> Path:
    """The configuration of a run of a few steps, whose data is made in `folder`."""
    data = write_tiny(folder / "data", {"train": [[80]], "validation": [[8]], "test": [[8]]})
    config = folder / "config.toml"
    config.write_text(SETTINGS.format(data=data), encoding="utf-8")
    return config


def same_end(run: Path, other: Path) -> bool:
    """Whether two runs ended alike to the last bit: weights, optimizer, average, losses, rates and estimates."""
    found, expected = lasting(run), lasting(other)
    return found[1:] == expected[1:] and same_bits(found[0], expected[0])
