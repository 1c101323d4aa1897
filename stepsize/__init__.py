"""The curvature-based step size α* = −dᵀg / dᵀGd for any PyTorch training loop.

`worker` measures what `estimate` defines, by the room `measuring`; `pooling` and the room `policies` make a learning
rate of many estimates; `losses` are what can be measured on.

worker = StepSizeWorker(model, optimizer, loss)
with worker.around_step(x1, y1, step=step):  # the next batch probes this one's step
    optimizer.step()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepsize.errors import MeasurementError
from stepsize.estimate import Diagnostics, Estimate, Outcome, StepSizeNumbers
from stepsize.options import MeasuringOptions
from stepsize.policies import Policy, StepSizeConfig, make_policy, set_learning_rate
from stepsize.pooling import PooledRate, RatioSums, median_rate, per_rate, pool

if TYPE_CHECKING:
    from stepsize.losses import AutogradLoss, BCEWithLogits, CrossEntropy, Loss, SquaredError, WeightedRows
    from stepsize.measuring import Lane, Pending
    from stepsize.policies import L4, PAL, SGDBB, SPS
    from stepsize.worker import Horizon, RateController, StepSizeWorker, first_rows

__version__ = "0.1.0"
"""Of the whole project, from whose pyproject.toml it must not differ."""

__all__ = [
    "L4",
    "PAL",
    "SGDBB",
    "SPS",
    "AutogradLoss",
    "BCEWithLogits",
    "CrossEntropy",
    "Diagnostics",
    "Estimate",
    "Horizon",
    "Lane",
    "Loss",
    "MeasurementError",
    "MeasuringOptions",
    "Outcome",
    "Pending",
    "Policy",
    "PooledRate",
    "RateController",
    "RatioSums",
    "SquaredError",
    "StepSizeConfig",
    "StepSizeNumbers",
    "StepSizeWorker",
    "WeightedRows",
    "__version__",
    "first_rows",
    "make_policy",
    "median_rate",
    "per_rate",
    "pool",
    "set_learning_rate",
]

_FILES = {
    "L4": "policies",
    "PAL": "policies",
    "SGDBB": "policies",
    "SPS": "policies",
    "AutogradLoss": "losses",
    "BCEWithLogits": "losses",
    "WeightedRows": "losses",
    "CrossEntropy": "losses",
    "Horizon": "worker",
    "Lane": "measuring",
    "Loss": "losses",
    "Pending": "measuring",
    "RateController": "worker",
    "SquaredError": "losses",
    "StepSizeWorker": "worker",
    "first_rows": "worker",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first asked for (PEP 562)."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
