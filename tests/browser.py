"""A page as chromium shows it: at a width, light or dark; what overflows, what it says to the console, a picture of it.

For example, by hand:

    python -m tests.browser http://127.0.0.1:9464/ /tmp/page      # page-390-dark.png and three more
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Scheme = Literal["light", "dark"]
WIDTHS = (390, 1280)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(node => {
  const box = node.getBoundingClientRect();
  let parent = node.parentElement;
  while (parent && getComputedStyle(parent).overflowX === "visible") parent = parent.parentElement;
  return box.width && box.right > innerWidth + 1 && !parent;
}).map(node => node.outerHTML.slice(0, 120))
"""
"""Elements beyond the right edge, but for those in a box that scrolls or hides them by itself."""
OVERLAPPING = """
[...document.querySelectorAll("svg")].flatMap(chart => {
  const boxes = [...chart.querySelectorAll("text")].map(node => [node.textContent, node.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    a.left < b.right && b.left < a.right && a.top + a.height / 8 < b.bottom - b.height / 8 &&
    b.top + b.height / 8 < a.bottom - a.height / 8).map(([other]) => `${one} ${other}`));
})
"""
"""Labels of a chart that lie on one another, but for the room above and below their digits."""
SETTLED = "new Promise(done => setTimeout(done, 1500))"
"""The page asks for its numbers when it is there, and draws them."""
SAYS = """
new Promise(done => {
  const wanted = %s, last = Date.now() + 30000;
  const look = () => {
    const there = document.readyState === "complete" && document.body.innerText.includes(wanted);
    there || Date.now() > last ? setTimeout(done, 50) : setTimeout(look, 20);
  };
  look();
})
"""
"""The page is there and says what is wanted, or half a minute has passed."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page that has been drawn."""

    width: int
    """Of all of it, in CSS pixels; more than was given: one has to scroll sideways."""
    overflowing: list[str]
    overlapping: list[str]
    """Pairs of labels in a chart."""
    picture: bytes
    """PNG."""
    background: str
    text: str


class Browser:
    """A chromium of its own; a context."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._number = 0

    def show(self, url: str, *, width: int, scheme: Scheme, says: str | None = None) -> Shown:
        """Opens `url` in a window of so many CSS pixels, all of it in sight, and looks when it `says` that, or soon."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def call(method: str, **parameters: Any) -> dict[str, Any]:
            return self._call(method, session=session, **parameters)

        def value(script: str) -> Any:
            found = call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
            return found["result"].get("value")

        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        call("Emulation.setDeviceMetricsOverride", **size)
        call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        call("Page.navigate", url=url)
        value(SETTLED if says is None else SAYS % json.dumps(says))
        picture = call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        shown = Shown(
            width=value("document.documentElement.scrollWidth"),
            overflowing=value(OVERFLOWING),
            overlapping=value(OVERLAPPING),
            picture=base64.b64decode(picture),
            background=value("getComputedStyle(document.body).backgroundColor"),
            text=value("document.body.innerText"),
        )
        self._call("Target.closeTarget", targetId=target)
        return shown

    def _call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to one command of its DevTools protocol."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (answer := json.loads(self._answer())).get("id") != self._number:
            pass  # events, which nobody asked for
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _answer(self) -> bytes:
        found = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "chromium has ended"
            found += byte
        return bytes(found)

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self_commands = os.pipe()
        self_answers, answers = os.pipe()
        # chromium reads its commands from descriptor 3, and answers on 4
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, self._program, *FLAGS, f"--user-data-dir={self._profile.name}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._commands, self._answers = os.fdopen(self_commands, "wb"), os.fdopen(self_answers, "rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._commands.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._profile.cleanup()


def main(url: str, stem: str) -> None:
    """Pictures of a page at all widths, light and dark; says what overflows, and which labels overlap."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed"
    with Browser(program) as browser:
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                shown = browser.show(url, width=width, scheme=scheme)
                Path(f"{stem}-{width}-{scheme}.png").write_bytes(shown.picture)
                print(f"{width} {scheme}: {shown.width} wide", shown.overflowing, shown.overlapping)


if __name__ == "__main__":
    main(*sys.argv[1:])
