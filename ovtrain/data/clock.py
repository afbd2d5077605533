"""Where a sample's time goes: seconds by stage, each moment counted for the innermost one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "signals", "crop")
"""Bytes from storage; media to pixels; energy and selection; patches out of the pixels."""


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._stage, self._since = "", 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = self._stage
        self._turn(stage)
        try:
            yield
        finally:
            self._turn(outer)

    def _turn(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now
