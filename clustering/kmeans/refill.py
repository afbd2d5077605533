"""Where centers go that own nothing: onto points of the largest clusters, or onto the points that
are served worst.

Choices are a function of the assignment, the seed and row numbers, so that they are the same
whatever the number of ranks. A move is a center and the row whose point it becomes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clustering.kmeans.draw import mixed
from clustering.points import RowNumbers

Counts = npt.NDArray[np.int64]
MOST_FREED = 0.1
"""Share of the centers that may be taken from the smallest clusters at a time."""


@dataclass(frozen=True)
class Assigned:
    """A block of the assignment: row numbers, the centers they belong to, squared distances."""

    rows: RowNumbers
    ids: npt.NDArray[np.int32]
    squared: npt.NDArray[np.float32]


def freed(counts: Counts, largest: float) -> tuple[RowNumbers, int]:
    """(centers to move, how many of them were not empty). Empty ones and, where ``largest`` is
    given, as many of the smallest clusters as clusters above ``largest`` times the mean need
    parts."""
    empty = np.flatnonzero(counts == 0)
    if not largest:
        return empty, 0
    limit = largest * counts.sum() / len(counts)
    giants = counts > limit
    wanted = int((np.ceil(counts[giants] / limit) - 1).sum()) - len(empty)
    wanted = min(wanted, int(MOST_FREED * len(counts)))
    if wanted <= 0:
        return empty, 0
    smallest = np.argsort(counts, kind="stable")[len(empty) :][:wanted]
    smallest = smallest[counts[smallest] * 2 < limit]
    return np.concatenate([empty, smallest]), len(smallest)


def parts(apart: Counts, wanted: int) -> dict[int, int]:
    """How many new centers each donor gets: always the cluster whose parts would be largest.
    ``apart``: points of each cluster that do not lie on its center."""
    sizes = [(-int(n), int(j)) for j, n in enumerate(apart) if n]
    heapq.heapify(sizes)
    given: dict[int, int] = {}
    for _ in range(wanted):
        if not sizes:
            break
        _, j = heapq.heappop(sizes)
        given[j] = given.get(j, 0) + 1
        if given[j] < apart[j]:
            heapq.heappush(sizes, (-(int(apart[j]) // (given[j] + 1)), j))
    return given


class Members:
    """Picks, of each donor, the wanted number of points that do not lie on its center: those that
    come first in an order drawn from the seed. ``add`` blocks, ``merge`` other ranks' picks."""

    def __init__(self, wanted: dict[int, int], seed: int) -> None:
        self.donors = np.array(sorted(wanted), np.int64)
        self.wanted = np.array([wanted[int(j)] for j in self.donors], np.int64)
        self.seed = np.uint64(seed)
        self.picked = np.empty((0, 3), np.uint64)  # donor's place, drawn number, row

    def add(self, block: Assigned) -> None:
        if not len(self.donors):
            return
        at = np.searchsorted(self.donors, block.ids).clip(max=len(self.donors) - 1)
        chosen = (self.donors[at] == block.ids) & (block.squared > 0)
        rows = block.rows[chosen].astype(np.uint64)
        self._keep(np.stack([at[chosen].astype(np.uint64), mixed(rows ^ self.seed), rows], axis=1))

    def merge(self, others: Iterable[npt.NDArray[np.uint64]]) -> None:
        self.picked = np.empty((0, 3), np.uint64)
        for other in others:
            self._keep(other)

    def rows(self) -> RowNumbers:
        return self.picked[:, 2].astype(np.int64)

    def _keep(self, more: npt.NDArray[np.uint64]) -> None:
        both = np.concatenate([self.picked, more])
        both = both[np.lexsort((both[:, 2], both[:, 1], both[:, 0]))]
        donor = both[:, 0].astype(np.int64)
        first = np.searchsorted(donor, np.arange(len(self.donors)))
        self.picked = both[np.arange(len(both)) - first[donor] < self.wanted[donor]]


class Worst:
    """Keeps the ``count`` points farthest from their centers, those at distance 0 never; of equally
    far ones the lower row."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept = np.empty((0, 2), np.float64)  # squared distance, row

    def add(self, block: Assigned) -> None:
        away = block.squared > 0
        columns = [block.squared[away], block.rows[away]]
        self._keep(np.stack(columns, axis=1, dtype=np.float64))

    def merge(self, others: Iterable[npt.NDArray[np.float64]]) -> None:
        self.kept = np.empty((0, 2), np.float64)
        for other in others:
            self._keep(other)

    def rows(self) -> RowNumbers:
        return self.kept[:, 1].astype(np.int64)

    def _keep(self, more: npt.NDArray[np.float64]) -> None:
        both = np.concatenate([self.kept, more])
        self.kept = both[np.lexsort((both[:, 1], -both[:, 0]))[: self.count]]
