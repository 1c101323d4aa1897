"""An optimizer's step that is not made where a flag says so."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def step_unless(optimizer: Optimizer, withheld: Tensor) -> None:
    """The optimizer's step if `withheld` () float32 is 0, and else nothing that moves weights or moments.

    NAdamW, and those of torch that are `fused`, take the flag as `found_inf`, as torch's gradient scaler hands it to
    them: the device masks the step, and the host waits for nothing. Of all others the host waits for the flag, which
    on the CPU is there.
    """
    if not (hasattr(optimizer, "found_inf") or getattr(optimizer, "_step_supports_amp_scaling", False)):
        if not withheld.item():
            optimizer.step()
        return
    before = getattr(optimizer, "found_inf", None)
    optimizer.found_inf = withheld  # pyright: ignore[reportAttributeAccessIssue]
    try:
        optimizer.step()
    finally:
        optimizer.found_inf = before  # pyright: ignore[reportAttributeAccessIssue]
