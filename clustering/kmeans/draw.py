"""First centers: distinct points, from the seed alone, whatever the number of ranks.

``random``: the first C distinct points of a seeded order of all rows. ``kmeans++`` (Arthur and
Vassilvitskii 2007): each next one with a chance in proportion to its squared distance from those
drawn so far, among a seeded sample of the points.

S samples, C centers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clustering.points import Points, RowNumbers, digests_of
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.context import World, seed_for
from ovtrain.schema.errors import ConfigError

PLUS_PLUS_PER_CENTER = 32
"""Points of the sample per center; kmeans++ reads all of them once for each center."""
PLUS_PLUS_NUMBERS = 2**28
"""Of the sample, which every rank holds in float32, and its differences from a center."""
ROUNDS = 6
LEAST = 1024


@dataclass(frozen=True)
class RowOrder:
    """A seeded permutation of 0 .. samples - 1 that takes no memory: a Feistel network on 2n bits,
    walked until it falls inside."""

    samples: int
    seed: int

    def __call__(self, first: int, count: int) -> RowNumbers:
        """Places ``first`` to ``first + count - 1``."""
        half = max(1, ((self.samples - 1).bit_length() + 1) // 2)
        found = self._walk(np.arange(first, first + count, dtype=np.uint64), half)
        outside = np.flatnonzero(found >= self.samples)
        while len(outside):
            found[outside] = self._walk(found[outside], half)
            outside = outside[found[outside] >= self.samples]
        return found.astype(np.int64)

    def _walk(self, x: np.ndarray, half: int) -> np.ndarray:
        mask = np.uint64((1 << half) - 1)
        left, right = x >> np.uint64(half), x & mask
        for round_ in range(ROUNDS):
            key = np.uint64(seed_for(self.seed, "feistel", round_))
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return left << np.uint64(half) | right


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def first_centers(
    points: Points, count: int, seed: int, start: str, world: World, *, fewer: bool = False
) -> RowNumbers:
    """Collective: (C,) rows to begin with, the same on every rank, no two equal as points.

    Where there are fewer than C distinct points: ``fewer`` rows, else ConfigError with both
    numbers.
    """
    drawn = np.empty(0, np.int64)
    if start == "kmeans++":
        drawn = _plus_plus(points, count, seed, world)
    found = _distinct(points, drawn, count, seed, world)
    if len(found) < count and not fewer:
        raise too_few(count, len(found), points.usable)
    return found


def too_few(clusters: int, distinct: int, features: int) -> ConfigError:
    return ConfigError(
        f"clusters={clusters}",
        f"{distinct} distinct points among {features} features",
        allowed=f"1 to {distinct}",
        fix=f"set clusters={distinct} or lower",
    )


def _distinct(points: Points, drawn: RowNumbers, count: int, seed: int, world: World) -> RowNumbers:
    order = RowOrder(len(points), seed_for(seed, "first centers"))
    chosen, seen = drawn, _digests(points, drawn, world)
    place = 0
    while len(chosen) < count and place < len(points):
        more = min(max(2 * (count - len(chosen)), LEAST), len(points) - place)
        rows = order(place, more)
        rows, place = rows[~points.is_bad(rows)], place + more
        found = np.concatenate([seen, _digests(points, rows, world)])
        # the first of each kind, in the order drawn
        first = np.sort(np.unique(found, return_index=True)[1])[:count]
        chosen, seen = np.concatenate([chosen, rows])[first], found[first]
    return chosen


def _digests(points: Points, rows: RowNumbers, world: World) -> np.ndarray:
    """Of all ``rows``, each rank reading its part of them."""
    mine = world.slice_of(len(rows))
    found = digests_of(points, rows[mine.start : mine.stop])
    return np.concatenate(gather_objects(found, world.group))


def _plus_plus(points: Points, count: int, seed: int, world: World) -> RowNumbers:
    """Up to C rows; fewer where the sample has fewer distinct points. Every rank computes the same,
    and the first one's word counts."""
    order = RowOrder(len(points), seed_for(seed, "kmeans++ sample"))
    most = min(PLUS_PLUS_PER_CENTER * count, PLUS_PLUS_NUMBERS // points.width)
    rows = order(0, min(len(points), max(LEAST, most)))
    rows = rows[~points.is_bad(rows)]
    if not len(rows):
        return rows
    sample = points.take(rows).float()
    rng = np.random.default_rng(seed_for(seed, "kmeans++ draws"))
    chosen = [int(rng.integers(len(rows)))]
    nearest = torch.full((len(rows),), torch.inf, device=sample.device)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (sample - sample[chosen[-1]]).square_().sum(dim=1))
        sums = nearest.double().cumsum(dim=0)
        if not float(sums[-1]):
            break
        drawn = torch.tensor(rng.random() * float(sums[-1]), dtype=torch.float64)
        at = int(torch.searchsorted(sums, drawn.to(sums.device), right=True))
        while at >= len(rows) or not float(nearest[at]):  # rounding, at the very end
            at -= 1
        chosen.append(at)
    return gather_objects(rows[chosen], world.group)[0]
