"""The alerting rules made short enough for a test, by one transformation of every duration in their file."""

from __future__ import annotations

import re
from pathlib import Path

ORIGINAL = Path(__file__).resolve().parents[3] / "ops" / "rules" / "alphastream.yml"
MINUTE, HOUR = 1.0, 6.0
"""What a minute and an hour of the rules are here, in seconds."""
SECONDS = {"900": 15 * MINUTE, "1800": 30 * MINUTE, "14400": 4 * HOUR, "86400": 24 * HOUR}
"""Numbers of the expressions that are seconds."""
_DURATION = re.compile(
    r"(?<=\[)\d+[smh](?=[\]:])|(?<=\d[smh]:)\d+[smh](?=\])|(?<= for: )\d+[smh]\b|(?<= interval: )\d+[smh]\b"
)
_NUMBER = re.compile(rf"(?<= )({'|'.join(SECONDS)})(?=[) \n])")


def shortened(text: str) -> str:
    """The rules in `text` with a minute as `MINUTE` and an hour as `HOUR`; nothing else of them is changed.

    Durations are windows, `for` and `interval`; and the numbers in expressions that are seconds, which are `SECONDS`.
    """
    text = _DURATION.sub(lambda found: f"{round(1000 * _seconds(found[0]))}ms", text)
    return _NUMBER.sub(lambda found: f"{SECONDS[found[0]]:g}", text)


def alerts_of(text: str) -> set[str]:
    """The alerts that `text` defines."""
    return set(re.findall(r"- alert: (\w+)", text))


def _seconds(duration: str) -> float:
    return int(duration[:-1]) * {"s": MINUTE / 60, "m": MINUTE, "h": HOUR}[duration[-1]]
