"""Intervals on a line: which of them is on at a time, how long each name is.

All times are in microseconds, as in Chrome's trace format.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    start: float
    end: float
    name: str


class Timeline:
    """``span`` cut into pieces, each with the name of the innermost interval over it; the span's
    own name where there is none. Intervals nest; one that begins inside another and outlives it is
    cut at the other's end."""

    def __init__(self, span: Interval, intervals: Iterable[Interval]) -> None:
        self.span = span
        self._times, self._names = [span.start], [span.name]
        inside = [span]
        for one in sorted(intervals, key=lambda i: (i.start, -i.end)):
            if one.end <= span.start or one.start >= span.end:
                continue
            while inside[-1].end <= one.start:
                self._leave(inside)
            self._mark(max(one.start, span.start), one.name)
            inside.append(Interval(one.start, min(one.end, inside[-1].end), one.name))
        while len(inside) > 1:
            self._leave(inside)

    def _leave(self, inside: list[Interval]) -> None:
        ended = inside.pop()
        self._mark(ended.end, inside[-1].name)

    def _mark(self, time: float, name: str) -> None:
        self._times.append(time)
        self._names.append(name)

    def at(self, time: float) -> str:
        """The innermost name at a time inside the span."""
        return self._names[max(bisect_right(self._times, time) - 1, 0)]

    def overlapping(self, start: float, end: float) -> list[Interval]:
        """The pieces of [start, end)."""
        first = max(bisect_right(self._times, start) - 1, 0)
        found: list[Interval] = []
        for at in range(first, len(self._times)):
            if self._times[at] >= end:
                break
            stop = self._times[at + 1] if at + 1 < len(self._times) else self.span.end
            piece = Interval(max(self._times[at], start), min(stop, end), self._names[at])
            if piece.end > piece.start:
                found.append(piece)
        return found

    def totals(self) -> dict[str, float]:
        """Time by name; together the span's length."""
        found: dict[str, float] = {}
        for piece in self.overlapping(self.span.start, self.span.end):
            found[piece.name] = found.get(piece.name, 0.0) + piece.end - piece.start
        return found


def layered(span: Interval, intervals: Iterable[Interval], below: str) -> list[Interval]:
    """``span`` cut into pieces with the name of an interval over it, the last begun; those named
    ``below`` show only where there is no other. Gaps have the span's name. Intervals may overlap in
    any way, as kernels of several streams do."""
    edges: list[tuple[float, int, int, Interval]] = []
    for number, one in enumerate(intervals):
        start, end = max(one.start, span.start), min(one.end, span.end)
        if start < end:
            edges += [(start, 1, number, one), (end, 0, number, one)]
    edges.sort(key=lambda edge: edge[:3])
    on: dict[int, str] = {}
    pieces: list[Interval] = []
    before = span.start
    for time, begins, number, one in edges:
        if time > before:
            pieces.append(Interval(before, time, _shown(on, span.name, below)))
            before = time
        if begins:
            on[number] = one.name
        else:
            del on[number]
    if before < span.end:
        pieces.append(Interval(before, span.end, span.name))
    return pieces


def _shown(on: dict[int, str], nothing: str, below: str) -> str:
    names = list(on.values())
    return next((name for name in reversed(names) if name != below), below if names else nothing)
