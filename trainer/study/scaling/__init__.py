"""A study made smaller with its proportions kept: fewer steps, rows and table rows, and seconds of this machine.

For example, `alphastream study thesis-observe --scale 1/100`:

    file = read_study("thesis-observe")
    smaller = scaled(file.settings, file.base, given=file.given, scale=scale_of("1/100"), train_rows=109_713)
    said = smaller.settings.scaled  # what became what
"""

from __future__ import annotations

from trainer.study.scaling.clock import ClockConfig, timed
from trainer.study.scaling.scale import ScaleConfig, ScaledSetting, scale_of, scaled

__all__ = ["ClockConfig", "ScaleConfig", "ScaledSetting", "scale_of", "scaled", "timed"]
