from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.device.batch_layout import BatchLayout, tensors_of
from pipeline.rows.reader import RowBatch


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_type", [np.uint8, np.float32])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7])
def test_a_batch_comes_out_as_it_went_in(rows, label_type, weighted):
    window = np.arange(5 * 20, dtype=np.int32).reshape(5, 20) - 50  # columns of a batch are parts of longer ones
    label = np.arange(20).astype(label_type)[6 : 6 + rows]
    batch = RowBatch(
        label=label,
        dense=window[:2, 6 : 6 + rows],
        buckets=window[2:, 6 : 6 + rows],
        weight=np.linspace(0.1, 9.0, 20, dtype=np.float32)[6 : 6 + rows] if weighted else None,
        epoch=0,
        start=6,
    )
    layout = BatchLayout.of(batch)
    assert layout.words == (5 + weighted) * rows + -(-label.nbytes // 4)
    words = torch.full((layout.words,), -1, dtype=torch.int32)
    layout.pack(batch, words)
    for found, expected in zip(layout.unpack(words), tensors_of(batch), strict=True):
        if found is None or expected is None:
            assert found is expected
            assert not weighted
            continue
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert not rows or found.untyped_storage().data_ptr() == words.data_ptr()
        assert found.stride(-1) == 1
