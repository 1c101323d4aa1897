"""What settings leave open, decided: by the run that is continued, and else by the device."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.shards import Manifest
from trainer.config import Config, ConfigError, config_errors, load_config
from trainer.job.learner import training_device

CONFIG = "config.toml"
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
    return with_delay(config, training_device())


def with_delay(config: Config, device: torch.device) -> Config:
    """The same with `stepsize.delay`, if it is left open, as `device` asks for.

    Runs of earlier versions left it open: on the CPU they had what is 0 now.
    """
    if config.stepsize.delay is not None:
        return config
    delay = CUDA_DELAY if device.type == "cuda" else 0
    return replace(config, stepsize=replace(config.stepsize, delay=delay))


def of_data(config: Config, manifest: Manifest) -> Config:
    """The same with what [loss] leaves open as the data of `manifest` has it.

    Raises: ConfigError where they contradict each other.
    """
    with config_errors():
        loss = config.loss.of_data(weight=manifest.format.weight, negatives_kept=manifest.negatives_kept)
    return replace(config, loss=loss)


def kept_settings(run: Path) -> Config | None:
    """What RUN/config.toml says of a run that has checkpoints to continue from; None if there are none.

    Raises: ConfigError as `load_config`.
    """
    kept = run / CONFIG
    if not kept.exists() or not any((run / "checkpoints").glob("step-*")):
        return None
    return load_config(kept).resolved()
