"""Line ends, counted and found as by walking over the bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.source.newlines import after_newlines, count_newlines


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), rate=st.sampled_from([0.0, 0.01, 0.5, 1.0]), data=st.data())
def test_line_ends_are_counted_and_found(seed: int, rate: float, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(0, 9000))
    text = np.where(random.random(size) < rate, 10, random.integers(0, 256, size)).astype(np.uint8)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    ends = np.flatnonzero(text[start:stop] == 10) + start + 1
    assert count_newlines(text, start, stop) == len(ends)
    lines = data.draw(st.integers(1, len(ends) + 2))
    expected = (ends[lines - 1], lines) if lines <= len(ends) else (stop, len(ends))
    assert after_newlines(text, start, stop, lines) == expected
