"""Whether the kernels can run on a device; found out once, by running one."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

OLDEST = (8, 0)
"""Compute capability that Triton compiles for at least."""


@cache
def unusable(device: torch.device) -> str | None:
    """Why the kernels cannot run on `device`; None where they can.

    Compiles and runs one, since Triton needs a C compiler and a driver beside itself; warns where it has none.
    """
    if device.type != "cuda":
        return f"they are for CUDA, not for {device.type}"
    if find_spec("triton") is None:
        return "Triton is not installed; install the extra: pip install 'alphastream[cuda]'"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"Triton compiles for compute capability {OLDEST[0]}.{OLDEST[1]} at least, not for {capability}"
    try:
        import_module("trainer.learner.kernels.rounding").foreach_lerp_rounding(device)
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"Triton's kernels cannot run on {device}, torch's slower ones do: {text}", stacklevel=2)
        return f"none can be run there ({text})"
    return None
