"""The optimizer's arithmetic on CUDA, as Triton kernels that round as the compiled ones do: rows, whole tensors, sums.

For example:

    if unusable(weight.device) is None:
        table = DeviceTable(weight)          # where a LazyTable stands on the CPU
    move_whole([(theta, g, m, v)], scalars)  # one step of whole tensors in one launch

Triton is imported when a kernel is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.learner.kernels.usable import unusable

if TYPE_CHECKING:
    from trainer.learner.kernels.device_table import DeviceTable
    from trainer.learner.kernels.launches import move_whole
    from trainer.learner.kernels.rounding import foreach_lerp_rounding

__all__ = ["DeviceTable", "foreach_lerp_rounding", "move_whole", "unusable"]

_FILES = {"DeviceTable": "device_table", "foreach_lerp_rounding": "rounding", "move_whole": "launches"}


def __getattr__(name: str) -> Any:
    """What needs Triton, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
