"""The HTTP port of a running job: metrics, health, readiness and the live page, and who may read them.

>>> from ops.metrics import Metrics
>>> from ops.server import Server
>>> with Server(Metrics(), "127.0.0.1", 0, lambda: {"step": 7}) as server:
...     server.mark_ready()
...     server.url.startswith("http://127.0.0.1:")
True
"""

from ops.server.endpoints import Server
from ops.server.listening import AddressError, PortInUseError
from ops.server.web_config import WebConfigError

__all__ = ["AddressError", "PortInUseError", "Server", "WebConfigError"]
