"""The processes of one run on this machine: started, told of signals, and started again together if one is lost.

They find what `torchrun` would have given them. For example, with `command` what each rank runs:

    code = launch(lambda _: command, LaunchConfig(ranks=4), run=Path("RUN"), console=Console())
"""

from __future__ import annotations

from trainer.launch.supervisor import LaunchConfig, launch
from trainer.launch.training import launch_training

__all__ = ["LaunchConfig", "launch", "launch_training"]
