"""Pairs of batches → tensors on the device, made ahead of the trainer; the only room with torch."""

from __future__ import annotations

from pipeline.device.open import DataConfig, DevicePair, Feed, ModelInputs, open_feed, open_rows

__all__ = [
    "DataConfig",
    "DevicePair",
    "Feed",
    "ModelInputs",
    "open_feed",
    "open_rows",
]
