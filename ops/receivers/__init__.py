"""Who else hears of a run: the service manager that started it, by systemd's notify protocol."""

from __future__ import annotations

from ops.receivers.service_manager import ServiceManager

__all__ = ["ServiceManager"]
