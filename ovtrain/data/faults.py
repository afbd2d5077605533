"""Why samples are not used: the categories that a run counts them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import DIED, OUT_OF_MEMORY, TIMED_OUT, category

OTHER = "other"
CATEGORIES = (
    *("storage error", "cut short", "index is wrong", "checksum differs"),
    *("does not decode", "too few frames", "other size", "energy is damaged"),
    *("not a readable picture", "too large a picture", "too long a picture"),
    *(TIMED_OUT, DIED, OUT_OF_MEMORY),
    OTHER,
)
"""The policy of each stands in docs/data_format.md."""


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be made: its source, ``shard.tar/key``, and why: a category, details
    in parentheses."""

    source: str
    name: str
    reason: str

    @property
    def category(self) -> str:
        found = category(self.reason)
        return found if found in CATEGORIES else OTHER


def by_category(bad: Iterable[BadSample]) -> Counter[str]:
    return Counter(one.category for one in bad)


class TooManyBad(MediaError):
    """A row of bad samples as long as a run may meet; ``bad``: those not handed over before."""

    bad: list[BadSample]


class Row:
    """Bad samples since the last good one, over all sources and of each."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lengths: Counter[str] = Counter()

    def good(self, source: str) -> None:
        self._lengths[source] = self._lengths[""] = 0

    def bad(self, source: str) -> int:
        """The longer row that a bad sample of ``source`` continues."""
        self._lengths[source] += 1
        self._lengths[""] += 1
        return max(self._lengths[source], self._lengths[""])
