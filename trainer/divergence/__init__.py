"""A run that goes wrong: steps that are withheld, when a run has diverged, what a rollback costs it, and overfitting.

For example:

    checked = check.sizes(inputs, loss)           # after backward: a flag on the device, read with the loss
    step_unless(optimizer, checked.withheld)
    watch.add(step, loss, withheld=cause is not None)
    if (divergence := watch.verdict(final=False)) is not None:
        recovery.roll_back(to_step, from_step=step, rows=rows)  # at half the rate
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.divergence.config import DivergenceConfig
from trainer.divergence.overfitting import Overfitting, ValidationTrend
from trainer.divergence.recovery import Recovery
from trainer.divergence.watch import Divergence, DivergenceWatch

if TYPE_CHECKING:
    from trainer.divergence.check import Checked, NumberCheck, WithheldCause
    from trainer.divergence.withholding import step_unless

__all__ = [
    "Checked",
    "Divergence",
    "DivergenceConfig",
    "DivergenceWatch",
    "NumberCheck",
    "Overfitting",
    "Recovery",
    "ValidationTrend",
    "WithheldCause",
    "step_unless",
]

_FILES = {"Checked": "check", "NumberCheck": "check", "WithheldCause": "check", "step_unless": "withholding"}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
