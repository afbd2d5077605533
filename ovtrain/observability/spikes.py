"""Sudden rises of the loss, found from the losses alone.

A loss is a spike where it lies more than ``k`` deviations above what the last ``window`` sound
losses let expect: their median, carried along the line through the medians of their two halves
(a young run's losses fall far in a window). The deviation is 1.4826 times the median absolute one
from that line, a Gaussian's sigma. Spikes themselves hardly move medians. A slow rise lifts what is
expected with it and is no spike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

SIGMA = 1.4826
"""Of a Gaussian, in median absolute deviations."""
Kind = Literal["spike", "rise"]


@dataclass(frozen=True)
class SpikeEvent:
    """``kind``: "spike" at the first loss beyond the ``limit``, "rise" once so many in a row are
    that it is no single bad batch. ``step`` and ``loss``: of the row that made it one."""

    kind: Kind
    step: int
    loss: float
    expected: float
    limit: float

    def __str__(self) -> str:
        found = f"step {self.step}: loss {self.loss:.4f}"
        usual = f"{self.expected:.4f} was expected, at most {self.limit:.4f}"
        return f"{found} {'stays high' if self.kind == 'rise' else 'is a spike'}; {usual}"


class SpikeDetector:
    """Fed with every step's loss, in order. ``least``: sound losses before anything is judged;
    ``sustained``: losses in a row beyond the limit that make a rise; ``floor``: the deviation is at
    least this share of the loss, for losses that hardly vary.

    Losses beyond the limit do not enter the history. After a rise its losses become the history: a
    new level is told of once.
    """

    def __init__(
        self, window: int, least: int, k: float, sustained: int, floor: float = 1e-3
    ) -> None:
        assert 2 <= least <= window
        assert sustained > 1
        self.least, self.k, self.sustained, self.floor = least, k, sustained, floor
        self._history: deque[float] = deque(maxlen=window)
        self._beyond: list[float] = []

    def add(self, rows: Iterable[tuple[int, float]]) -> list[SpikeEvent]:
        """Events of (step, finite loss) rows."""
        found = (self._judge(step, loss) for step, loss in rows)
        return [event for event in found if event is not None]

    def _judge(self, step: int, loss: float) -> SpikeEvent | None:
        if len(self._history) < self.least:
            self._history.append(loss)
            return None
        expected, limit = self._limit()
        if loss <= limit:
            self._history.append(loss)
            self._beyond.clear()
            return None
        self._beyond.append(loss)
        if len(self._beyond) == self.sustained:
            self._history.clear()
            self._history.extend(self._beyond)
            self._beyond.clear()
            return SpikeEvent("rise", step, loss, expected, limit)
        if len(self._beyond) == 1:
            return SpikeEvent("spike", step, loss, expected, limit)
        return None

    def _limit(self) -> tuple[float, float]:
        """The next loss as expected, and the highest one that is no spike."""
        losses = list(self._history)
        half = len(losses) // 2
        slope = (median(losses[half:]) - median(losses[:half])) / half
        levelled = [loss + slope * (len(losses) - i) for i, loss in enumerate(losses)]
        expected = median(levelled)
        spread = SIGMA * median(abs(loss - expected) for loss in levelled)
        return expected, expected + self.k * max(spread, self.floor * abs(expected))

    def to_json(self) -> dict[str, Any]:
        return {"history": list(self._history), "beyond": list(self._beyond)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what ``to_json`` gave: the same events follow."""
        self._history.clear()
        self._history.extend(saved["history"])
        self._beyond = list(saved["beyond"])
