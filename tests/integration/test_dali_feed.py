"""A run fed by DALI is the run that the ring feeds, wherever it changes from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resume import lasting, same_bits
from trainer.cli import main

pytest.importorskip("nvidia.dali", reason="DALI is the extra `dali`")

SETTINGS = """
[budget]
steps = 200
[schedule]
name = "constant"
[stepsize]
policy = "observe"
interval = 10
count = 2
start = 5
[eval]
rows = 256
"""


def test_losses_estimates_and_weights_are_the_same_to_the_last_bit(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, ring, dali = write_config(SETTINGS), tmp_path / "ring", tmp_path / "dali"
    assert main(["train", str(config), "--run", str(ring)]) == 0
    for steps, feed in ((60, "dali"), (70, "ring"), (130, "dali"), (200, "dali")):
        overrides = ["--data.feed", feed, "--budget.steps", str(steps)]
        assert main(["train", str(config), "--run", str(dali), *overrides]) == 0

    tensors, steps, estimates = lasting(ring)
    dali_tensors, dali_steps, dali_estimates = lasting(dali)
    assert len(steps) == 200  # 9,600 rows in batches of 64: the epoch ends at step 150
    assert estimates
    assert dali_steps == steps
    assert dali_estimates == estimates
    assert same_bits(tensors, dali_tensors)
