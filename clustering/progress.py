"""Progress of a feature pass: a line at most every two seconds, and one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAY_EVERY = 2.0


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


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2 d 01:02:03``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h:02d}:{m:02d}:{s:02d}" if days else f"{h}:{m:02d}:{s:02d}"
