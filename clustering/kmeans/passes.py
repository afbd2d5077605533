"""Passes over all points: which center is nearest, and what the points of each center add up to.

Sums are of integers: a number of float16 is a whole multiple of 2^-24, one of a unit vector is
rounded to 2^-30. So they are exact, and the same in any order and on any number of ranks.

S samples, C centers, F width, B rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clustering.kmeans.refill import Assigned, Counts
from clustering.kmeans.state import Array
from clustering.neighbours import Layout, Neighbours, keys_of
from clustering.points import Block, Points
from clustering.progress import Pace
from clustering.search import NO_KEY, open_search, pack, unpack, unpack_array
from ovtrain.distributed.collectives import barrier, reduce_in_place
from ovtrain.ops.nearest import add_rows

HALF_BITS, UNIT_BITS, TOTAL_BITS = 24, 30, 62
CHUNK = 2**24
"""Numbers that are reduced or divided at a time."""
ROWS = 2**20
"""Of the assignment that are looked through at a time."""


def fixed_point(points: Points, largest: float) -> int:
    """Bits behind the point of the integer sums, such that no sum can overflow; ``largest``:
    absolute number of the features."""
    bits, high = (UNIT_BITS, 1.0) if points.spherical else (HALF_BITS, max(largest, 2.0**-24))
    return min(bits, TOTAL_BITS - math.ceil(math.log2(max(1, len(points)) * high)))


def distance_bits(points: Points, largest: float) -> int:
    """As ``fixed_point``, of the sum of all squared distances; below 0 where these are huge."""
    high = 4.0 if points.spherical else 4.0 * points.width * max(largest, 2.0**-24) ** 2
    return TOTAL_BITS - math.ceil(math.log2(max(1, len(points)) * high))


@dataclass
class Tally:
    """Of a pass, over all ranks. ``counts`` (C,) points of each center; ``apart`` (C,) those that
    do not lie on it."""

    objective: float
    moved: int
    counts: Counts
    apart: Counts


class Passes:
    """A rank's part of all passes."""

    def __init__(
        self,
        points: Points,
        layout: Layout,
        clusters: int,
        engine: str,
        largest: float,
        say: Callable[[str], None],
    ) -> None:
        """``largest``: absolute number of the features."""
        self.points, self.layout, self.clusters = points, layout, clusters
        self.engine, self.say = engine, say
        self.neighbours = Neighbours(points, layout, engine)
        self.shift = fixed_point(points, largest)
        self.distance_bits = distance_bits(points, largest)
        self._sums: Tensor | None = None

    def load(self, centers: Array, part: range) -> Tensor:
        return self.neighbours.load(centers, part)

    def assign(
        self, centers: Array, keys: Array, before: Array | None, what: str, *, add: bool
    ) -> Tally:
        """Collective: write each point's key to ``keys``, compare with ``before``. ``add``: sum up
        the points of each center on the way, where one pass can."""
        layout, tally = self.layout, _Tally(self.clusters, self.points.device, self.distance_bits)
        self._sums = self._new_sums(layout.ranges[0]) if add and layout.single else None
        pace = Pace(len(layout.samples), what, self.say)
        for block, found in self.neighbours.keys(centers, 1, layout.samples, pace.step):
            nearest = found[:, 0].contiguous()
            tally.add(nearest, self._read(before, block))
            if self._sums is not None:
                self._add(self._sums, block.x, nearest, layout.ranges[0])
            self._record(keys, block, nearest)
        return tally.total(self.layout)

    def sums(self, part: range, keys: Array, what: str) -> Tensor:
        """Collective: (c, F) int64 sums of the points of centers ``part``, over all ranks."""
        sums, self._sums = self._sums, None
        if sums is None:
            keys.sync()
            barrier(self.layout.grid.inner_group)  # the first of the group wrote them for all
            sums = self._new_sums(part)
            for block in self._blocks(what):
                self._add(sums, block.x, self._read(keys, block), part)
        for rows in sums.split(max(1, CHUNK // self.points.width)):
            reduce_in_place(rows, self.layout.grid.outer_group)
        return sums

    def assigned(self, keys: Array) -> Iterator[Assigned]:
        """The assignment of this rank's samples; of the first rank of an inner group alone, the
        others have nothing to add."""
        if not self.layout.first_inner:
            return
        samples = self.layout.samples
        for start in range(samples.start, samples.stop, ROWS):
            found = keys.read(start, min(ROWS, samples.stop - start))
            rows = np.flatnonzero(found >= 0)
            yield Assigned(start + rows, *unpack_array(found[rows]))

    def improve(self, keys: Array, moved: Tensor, ids: Tensor) -> Tally:
        """Collective: points that are nearer to one of the ``moved`` centers (E, F), whose ids are
        ``ids`` (E,), are theirs now."""
        tally = _Tally(self.clusters, self.points.device, self.distance_bits)
        search = open_search(self.engine, moved, self.neighbours.gpu)
        for block in self._blocks("filling empty centers") if self.layout.first_inner else ():
            found = keys_of(search, block.x, 1, 0)[:, 0]
            place, squared = unpack(found)
            old = self._read(keys, block)
            new = torch.minimum(old, pack(ids[place.long()], squared))
            tally.add(new, old)
            self._record(keys, block, new)
        return tally.total(self.layout, whole_world=True)

    def _blocks(self, what: str) -> Iterator[Block]:
        samples = self.layout.samples
        pace = Pace(len(samples), what, self.say)
        for block in self.points.blocks(samples.start, samples.stop):
            yield block
            pace.step(len(block.span))

    def _new_sums(self, part: range) -> Tensor:
        shape = (len(part), self.points.width)
        return torch.zeros(shape, dtype=torch.int64, device=self.points.device)

    def _add(self, sums: Tensor, x: Tensor, keys: Tensor, part: range) -> None:
        counted = torch.zeros(len(part), dtype=torch.int64, device=x.device)
        add_rows(sums, counted, x, unpack(keys)[0] - part.start, self.shift)

    def _read(self, array: Array | None, block: Block) -> Tensor:
        """(B,) keys of a block's usable rows; where nothing is known, keys that none has."""
        if array is None:
            return torch.full((len(block.rows),), NO_KEY, device=self.points.device)
        keys = array.read(block.span.start, len(block.span))[block.rows - block.span.start]
        return torch.from_numpy(keys).to(self.points.device)

    def _record(self, keys: Array, block: Block, found: Tensor) -> None:
        if not self.layout.first_inner:
            return
        whole = np.full(len(block.span), -1, np.int64)
        whole[block.rows - block.span.start] = found.cpu().numpy()
        keys.write(block.span.start, whole)


class _Tally:
    """Counts on the device, added up over ranks at the end."""

    def __init__(self, clusters: int, device: torch.device, bits: int) -> None:
        self.scale = 2.0**bits
        self.numbers = torch.zeros(2, dtype=torch.int64, device=device)
        self.counts = torch.zeros((2, clusters), dtype=torch.int64, device=device)

    def add(self, keys: Tensor, before: Tensor) -> None:
        ids, squared = unpack(keys)
        self.numbers[0] += (squared.double() * self.scale).round().long().sum()
        self.numbers[1] += (ids != unpack(before)[0]).sum()
        self.counts[0].index_add_(0, ids.long(), torch.ones_like(keys))
        self.counts[1].index_add_(0, ids.long(), (squared > 0).long())

    def total(self, layout: Layout, *, whole_world: bool = False) -> Tally:
        grid = layout.grid
        group = grid.world.group if whole_world else grid.outer_group
        counts, apart = reduce_in_place(self.counts, group).cpu().numpy()
        objective, moved = reduce_in_place(self.numbers, group).tolist()
        return Tally(objective / self.scale, moved, counts, apart)
