"""Measures how long each optimizer step should have been, around the step of any training loop.

worker = StepSizeWorker(model, optimizer, loss, delay=4)
with worker.around_step(x1, y1, step=step):  # batches: B1 cut to its probe rows; group_rates: the rates of the step
    optimizer.step()
estimates = worker.poll(step=step)  # measurement_queue: in flight → finished → due, stored by stored_estimates

horizon: the same for the steps since a snapshot at once.
rate_controller: both at work for a policy that sets the rate.
"""

from __future__ import annotations

from stepsize.worker.batches import first_rows
from stepsize.worker.horizon import Horizon
from stepsize.worker.rate_controller import RateController
from stepsize.worker.worker import StepSizeWorker

__all__ = ["Horizon", "RateController", "StepSizeWorker", "first_rows"]
