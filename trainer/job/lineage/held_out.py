"""What is told of a run that keeps some of its training rows for probing."""

from __future__ import annotations

from trainer.config import Config
from trainer.job.observer import Outlets
from trainer.job.training_state import TrainingState


def say_what_is_held_out(config: Config, state: TrainingState, outlets: Outlets) -> None:
    """Tells, as the run begins, which share of its training rows it keeps for probing, if it keeps any."""
    held, rows = state.feed.held_out_rows, state.manifest.splits["train"].rows
    if not held:
        return
    probe_rows = config.data.probe_rows or config.data.batch_rows
    few = f"; they are {held:,}, and a probe has no more" if held < probe_rows else ""
    message = f"{100 * held / rows:.2g} % of the training rows are kept for probing{few}"
    outlets.directory.event("held_out", step=0, rows=held, of_rows=rows, message=message)
    outlets.live.message(0, message)
    outlets.console.say(message)
