"""How far a long pass is: plain lines. Of the feature pass every two seconds and at the end; of
passes over features rarely, and never of short ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAY_EVERY, PASS_EVERY = 2.0, 10.0
"""Seconds between two lines."""


class Progress:
    """Counts samples of one task; ``name`` starts each line."""

    def __init__(
        self,
        name: str,
        total: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.say, self.clock = name, total, say, clock
        self.done = self.bad = 0
        self.waited = 0.0
        self.start = self.said = clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is time in which the teacher has nothing to do."""
        start = self.clock()
        yield
        self.waited += self.clock() - start

    def step(self, samples: int, bad: int) -> None:
        """``samples`` more, ``bad`` of them skipped."""
        self.done += samples
        self.bad += bad
        now = self.clock()
        if now - self.said >= SAY_EVERY or self.done >= self.total:
            self.said = now
            self.say(self._line(max(now - self.start, 1e-9)))

    def _line(self, seconds: float) -> str:
        rate = self.done / seconds
        line = f"{self.name}: {self.done} of {self.total}, {rate:.1f}/s, "
        line += f"{self.waited / seconds:.0%} waiting for data, {self.bad} skipped"
        left = self.total - self.done
        return f"{line}, {duration(left / rate)} left" if left else line


class Pace:
    """Nothing is said of what ends sooner than the first line would come."""

    def __init__(self, total: int, what: str, say: Callable[[str], None]) -> None:
        self.total, self.what, self.say = total, what, say
        self.done = 0
        self.start = self.said = time.monotonic()

    def step(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.said < PASS_EVERY:
            return
        self.said = now
        rate = self.done / (now - self.start)
        left = duration((self.total - self.done) / rate)
        self.say(f"{self.what}: {self.done:,} of {self.total:,}, {rate:,.0f}/s, {left} left")


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2 d 01:02:03``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h:02d}:{m:02d}:{s:02d}" if days else f"{h}:{m:02d}:{s:02d}"
