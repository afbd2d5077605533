"""How far a long pass is: plain lines, rarely."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 10.0
"""Seconds between two lines."""


class Pace:
    """Nothing is said of what ends sooner than the first line would come."""

    def __init__(self, total: int, what: str, say: Callable[[str], None]) -> None:
        self.total, self.what, self.say = total, what, say
        self.done = 0
        self.start = self.said = time.monotonic()

    def step(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.said < EVERY:
            return
        self.said = now
        rate = self.done / (now - self.start)
        left = (self.total - self.done) / rate
        self.say(
            f"{self.what}: {self.done:,} of {self.total:,}, {rate:,.0f}/s, {duration(left)} left"
        )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{seconds:02d} min"
