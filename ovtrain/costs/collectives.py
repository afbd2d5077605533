"""Calls and payload bytes of collectives by kind, as ``ovtrain.distributed.traffic`` counts them at
run time: ``all_reduce``, ``all_gather``, ``reduce_scatter``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Collectives:
    """Kinds without a call are left out."""

    bytes: dict[str, int] = field(default_factory=dict[str, int])
    calls: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def of(cls, kind: str, payload: int, calls: int = 1) -> Collectives:
        """``calls`` that carry ``payload`` bytes each."""
        return cls({kind: payload * calls}, {kind: calls}) if calls else cls()

    def __add__(self, other: Collectives) -> Collectives:
        return added([self, other])

    def times(self, number: int) -> Collectives:
        return Collectives(
            {kind: n * number for kind, n in self.bytes.items()},
            {kind: n * number for kind, n in self.calls.items()},
        )

    def __bool__(self) -> bool:
        return bool(self.calls)

    @property
    def count(self) -> int:
        """Calls of all kinds."""
        return sum(self.calls.values())


def added(found: Iterable[Collectives]) -> Collectives:
    """Sums by kind."""
    payload, calls = Counter[str](), Counter[str]()
    for each in found:
        payload.update(each.bytes)
        calls.update(each.calls)
    return Collectives(dict(payload), dict(calls))
