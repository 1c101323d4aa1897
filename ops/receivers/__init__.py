"""Who else hears of a run: the service manager that started it, and TensorBoard by the event files that it reads."""

from __future__ import annotations

from ops.receivers.service_manager import ServiceManager
from ops.receivers.tensorboard import TensorBoard

__all__ = ["ServiceManager", "TensorBoard"]
