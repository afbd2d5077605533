"""The nearest centers of all points, on any number of ranks, in bounded memory.

Ranks form a grid (``ovtrain.distributed.grid``): the outer dimension divides the samples, the inner
one the centers. The ranks of an inner group read the same samples, each searches its own centers,
and the least keys (distance, then id) of the group are the result. Where a rank's centers do not
fit its memory it takes them in several ranges, one after the other for each segment of samples.

S samples, C centers, F width, K neighbours, B rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from clustering.points import Block, Points, block_rows
from clustering.search import Search, open_search, pack
from ovtrain.config.step_plan import split
from ovtrain.costs.clustering import FOR_CENTERS, ROW_BYTES
from ovtrain.distributed.collectives import all_gather_padded, reduce_in_place
from ovtrain.distributed.context import World
from ovtrain.distributed.grid import Grid, make_grid
from ovtrain.schema.errors import ConfigError

SEGMENT = 64
"""Blocks of samples for which ranges of centers are loaded in turn."""


class Table(Protocol):
    """Centers (C, F) float32 on disk or in memory."""

    def read(self, first: int, count: int) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Layout:
    """A rank's part: its place in the grid, the ``samples`` it reads, its centers as ``ranges``."""

    grid: Grid
    samples: range
    ranges: tuple[range, ...]

    @property
    def single(self) -> bool:
        return len(self.ranges) == 1

    @property
    def first_inner(self) -> bool:
        """Of the ranks that read the same samples, the one that writes of them."""
        return self.grid.inner == 0

    @property
    def first_outer(self) -> bool:
        """Of the ranks that hold the same centers, the one that writes them."""
        return self.grid.outer == 0


def make_layout(
    world: World, samples: int, clusters: int, width: int, memory_gib: float, center_shards: int
) -> Layout:
    """Collective. ``center_shards`` 0: the fewest that let a rank's centers fit into its memory.
    There are never more shards than centers.

    ConfigError where they do not divide the world.
    """
    memory, row = FOR_CENTERS * memory_gib * 2**30, width * ROW_BYTES
    divisors = [d for d in range(1, world.size + 1) if world.size % d == 0]
    if center_shards and center_shards not in divisors:
        raise ConfigError(
            f"center_shards={center_shards}",
            f"does not divide {world.size} ranks",
            allowed=", ".join(map(str, divisors)),
        )
    fits = (d for d in divisors if clusters * row <= memory * d)
    wanted = center_shards or next(fits, world.size)
    grid = make_grid(world, max(d for d in divisors if d <= min(wanted, clusters)))
    ranges = _ranges(
        split(clusters, grid.inner, grid.inner_size), clusters / grid.inner_size, memory / row
    )
    return Layout(grid, split(samples, grid.outer, grid.outer_size), ranges)


def _ranges(own: range, share: float, fitting: float) -> tuple[range, ...]:
    """``own`` centers in parts of which about ``fitting`` fit. Ranks of a group own ``share`` each,
    rounded up or down, and have equally many parts: passes over them meet in collectives."""
    count = min(max(1, math.ceil(math.ceil(share) / fitting)), math.floor(share))
    starts = [own.start + len(own) * i // count for i in range(count + 1)]
    return tuple(range(a, b) for a, b in pairwise(starts))


@dataclass
class Neighbours:
    """``engine`` as in ``clustering.search``; ``given`` is searched instead, where all centers are
    this rank's. ``repeated`` counts searches that had to be done throughout in float32."""

    points: Points
    layout: Layout
    engine: str
    given: Search | None = None
    repeated: int = 0

    def load(self, table: Table, part: range) -> Tensor:
        return torch.from_numpy(table.read(part.start, len(part))).to(self.points.device)

    def keys(
        self, table: Table, top: int, samples: range, step: Callable[[int], None]
    ) -> Iterator[tuple[Block, Tensor]]:
        """Collective in an inner group: (block, keys (B, K) int64, nearest first) of ``samples``.
        ``step`` is told how many rows are done."""
        ranges, size = self.layout.ranges, SEGMENT * block_rows(self.points.width)
        if self.layout.single:
            size = max(1, len(samples))
        for start in range(samples.start, samples.stop, size):
            segment = range(start, min(start + size, samples.stop))
            found: list[Tensor] = []
            for part in ranges[:-1]:
                for i, (_, keys) in enumerate(self._search(table, part, top, segment)):
                    if part == ranges[0]:
                        found.append(keys)
                    else:
                        found[i] = least([found[i], keys], top)
            for i, (block, keys) in enumerate(self._search(table, ranges[-1], top, segment)):
                yield block, self._of_group(least([*found[i : i + 1], keys], top), top)
                step(len(block.span))

    def _search(
        self, table: Table, part: range, top: int, segment: range
    ) -> Iterator[tuple[Block, Tensor]]:
        search = self.given or open_search(self.engine, self.load(table, part), self.gpu)
        for block in self.points.blocks(segment.start, segment.stop):
            yield block, keys_of(search, block.x, min(top, len(part)), part.start)
        self.repeated += getattr(search, "repeated", 0)

    def _of_group(self, keys: Tensor, top: int) -> Tensor:
        group, size = self.layout.grid.inner_group, self.layout.grid.inner_size
        if group is None:
            return keys
        if top == 1:
            return reduce_in_place(keys.contiguous(), group, "min")
        wide = torch.full((len(keys), top), torch.iinfo(torch.int64).max, device=keys.device)
        wide[:, : keys.shape[1]] = keys
        gathered = all_gather_padded(wide, len(wide), group, fill=0)
        return least(list(gathered.view(size, len(wide), top)), top)

    @property
    def gpu(self) -> int | None:
        """The one that faiss may use; None, of a process that is alone: all there are."""
        world = self.layout.grid.world
        return world.local_rank if world.size > 1 else None


def keys_of(search: Search, x: Tensor, top: int, first: int) -> Tensor:
    """(B, K) keys; ``first`` is the id of the search's first center."""
    ids, squared = search.nearest(x, top)
    return pack(ids.to(torch.int64) + first, squared)


def least(keys: list[Tensor], top: int) -> Tensor:
    """The ``top`` least keys of each row, in order, of (B, k) each."""
    if len(keys) == 1:
        return keys[0]
    return torch.cat(keys, dim=1).sort(dim=1).values[:, :top]
