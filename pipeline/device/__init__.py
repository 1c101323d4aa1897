"""Pairs of batches → tensors on the device, made ahead of the trainer; the only room with torch.

>>> config = DataConfig(path="data", batch_rows=20)
>>> with open_feed(config, Manifest.load(config.path), table_rows=1000, device=torch.device("cpu")) as feed:
...     pair = next(feed)
>>> pair.b2.dense.shape, pair.b2.ids.shape, feed.position
(torch.Size([20, 2]), torch.Size([3, 20]), RowPosition(epoch=0, row=20))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.device.config import DataConfig

if TYPE_CHECKING:
    from pipeline.device.feed import DevicePair, Feed, StreamWait
    from pipeline.device.line_inputs import LineInputs, open_lines
    from pipeline.device.model_inputs import ModelInputs
    from pipeline.device.opening import open_feed, open_rows
    from pipeline.device.own_loop import BatchStream, PairStream, open_batches, open_pairs, open_split

__all__ = [
    "BatchStream",
    "DataConfig",
    "DevicePair",
    "Feed",
    "LineInputs",
    "ModelInputs",
    "PairStream",
    "StreamWait",
    "open_batches",
    "open_feed",
    "open_lines",
    "open_pairs",
    "open_rows",
    "open_split",
]

_FILES = {
    "DevicePair": "feed",
    "Feed": "feed",
    "LineInputs": "line_inputs",
    "ModelInputs": "model_inputs",
    "StreamWait": "feed",
    "BatchStream": "own_loop",
    "PairStream": "own_loop",
    "open_batches": "own_loop",
    "open_pairs": "own_loop",
    "open_split": "own_loop",
    "open_feed": "opening",
    "open_lines": "line_inputs",
    "open_rows": "opening",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
