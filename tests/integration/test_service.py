"""A run as a service: what its manager hears on the socket from start to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "-m", "trainer.cli", "train"]


class Listener:
    """A service manager's end of the socket, which hears everything at once: the kernel keeps ten messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._messages: SimpleQueue[str] = SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while message := self._socket.recv(4096).decode():
            self._messages.put(message)

    def next(self) -> str:
        return self._messages.get(timeout=60)

    def until(self, found: Callable[[str], bool]) -> list[str]:
        """The messages up to the first that is `found`."""
        messages = [self.next()]
        while not found(messages[-1]):
            messages.append(self.next())
        return messages

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as farewell:
            farewell.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        self.path.unlink()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "notify")
    yield listener
    if listener.path.exists():
        listener.close()


def service(arguments: list[str], listener: Listener) -> subprocess.Popen[str]:
    environment = {**os.environ, "NOTIFY_SOCKET": str(listener.path), "WATCHDOG_USEC": "80000"}
    return subprocess.Popen(
        [*TRAIN, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_the_manager_hears_of_start_steps_and_stop(
    write_config: Callable[..., Path], listener: Listener, tmp_path: Path
) -> None:
    """Evaluations come between; a status is told every ten seconds, so most of what is heard feeds the watchdog."""
    config = write_config("[budget]\nsteps = 1000000\n[eval]\nevery_steps = 10\nrows = 256")
    arguments = [str(config), "--run", str(tmp_path / "run")]
    process = service(arguments, listener)
    before = listener.until(lambda message: message == "READY=1")
    assert before[0].startswith("STATUS=starting: loading torch\nEXTEND_TIMEOUT_USEC=")
    assert not any("WATCHDOG" in message for message in before)
    training = listener.until(lambda message: message.startswith("STATUS=step "))
    training += [listener.next() for _ in range(5)]
    assert training.count("WATCHDOG=1") >= 5

    process.send_signal(signal.SIGTERM)
    listener.until(lambda message: message == "STOPPING=1")
    saving = listener.until(lambda message: message.startswith("STATUS=stopping: saving"))
    assert "EXTEND_TIMEOUT_USEC=" in saving[-1]
    listener.until(lambda message: "stopped by a signal" in message)
    process.communicate(timeout=60)
    assert process.returncode == 143
