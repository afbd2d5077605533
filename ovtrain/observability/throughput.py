"""Rates between two logging steps: samples/s, tokens/s, FLOP/s and the share of time that a rank
waited for data. Plain host counters: nothing here touches a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Counts of one window; ``read`` returns its rates and opens the next window.

    ``add`` takes the counts of whatever scope the rates shall have (all ranks, for metrics.jsonl).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open()

    def _open(self) -> None:
        self._start = self._clock()
        self._samples = self._tokens = 0
        self._flops = 0.0
        self._waits: list[float] = []

    def add(self, samples: int, tokens: int, flops: float = 0.0) -> None:
        self._samples += samples
        self._tokens += tokens
        self._flops += flops

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waits.append(self._clock() - start)

    def read(self) -> dict[str, float]:
        """{"samples_per_s", "tokens_per_s", "flops_per_s", "data_wait" (share 0..1),
        "data_wait_ms" and "data_wait_ms_max" (per step, mean and longest)}."""
        seconds, waited = max(self._clock() - self._start, 1e-9), sum(self._waits)
        rates = {
            "samples_per_s": self._samples / seconds,
            "tokens_per_s": self._tokens / seconds,
            "flops_per_s": self._flops / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "data_wait_ms": 1e3 * waited / max(len(self._waits), 1),
            "data_wait_ms_max": 1e3 * max(self._waits, default=0.0),
        }
        self._open()
        return rates
