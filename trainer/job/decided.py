"""What settings leave open, decided: by the run that is continued, and else by the device and the data."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.shards import Manifest
from trainer.config import Config, ConfigError, load_config
from trainer.job.learner import training_device
from trainer.records import checkpoint_steps, stored_value

CONFIG = "config.toml"
PAIRING = "pairing"
"""Key of a checkpoint's state: data.pairing. Those of earlier versions have none."""
CUDA_DELAY = 4
"""stepsize.delay on a device that runs asynchronously: the host is a few steps ahead of it, and measuring is slower
than a step for some models."""


def decided(config: Config, run: str | Path) -> Config:
    """`config` resolved, with what it leaves open as the run at `run` has it, if that is continued, or as suits here.

    Raises: as `Config.resolved`.
    """
    open_average = config.optimizer.average is None
    config = config.resolved()
    with suppress(ConfigError):  # settings that cannot be read are refused as the run is opened
        before = kept_settings(Path(run))
        if before is not None and config.stepsize.delay is None:
            config = replace(config, stepsize=replace(config.stepsize, delay=before.stepsize.delay))
        if before is not None and open_average:
            config = replace(config, optimizer=replace(config.optimizer, average=before.optimizer.average))
        if config.data.pairing is None and checkpoint_steps(run):
            found = stored_value(run, PAIRING) if before is None else before.data.pairing
            config = replace(config, data=replace(config.data, pairing=found or "sliding"))
    return with_delay(config, training_device())


def with_delay(config: Config, device: torch.device) -> Config:
    """The same with `stepsize.delay`, if it is left open, as `device` asks for.

    Runs of earlier versions left it open: on the CPU they had what is 0 now.
    """
    if config.stepsize.delay is not None:
        return config
    delay = CUDA_DELAY if device.type == "cuda" else 0
    return replace(config, stepsize=replace(config.stepsize, delay=delay))


def with_pairing(config: Config, manifest: Manifest) -> Config:
    """The same with `data.pairing`, if it is left open, as the data and the budget ask for.

    Once the data is read again, the next batch has been trained on before, and says that a longer step would have been
    better long after it would not: then policy `auto`, which goes by what probes say, gets rows of their own.
    """
    if config.data.pairing is not None:
        return config
    rows, share = manifest.splits["train"].rows, config.data.held_out_share
    enough = rows - max(round(share * rows), 1) >= config.data.batch_rows
    held = config.stepsize.policy == "auto" and reads_again(config, manifest) and enough
    return replace(config, data=replace(config.data, pairing="held_out" if held else "sliding"))


def reads_again(config: Config, manifest: Manifest) -> bool:
    """Whether the budget is more than one pass over the training rows, as far as it tells."""
    if config.data.follow:
        return False
    epoch = -(-manifest.splits["train"].rows // config.data.batch_rows)
    total = config.budget.total_steps(epoch)
    return total is not None and total > epoch


def kept_settings(run: Path) -> Config | None:
    """What RUN/config.toml says of a run that has checkpoints to continue from; None if there are none.

    Raises: ConfigError as `load_config`.
    """
    kept = run / CONFIG
    if not kept.exists() or not any((run / "checkpoints").glob("step-*")):
        return None
    return load_config(kept).resolved()
