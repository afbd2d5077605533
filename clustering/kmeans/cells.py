"""Hierarchical k-means: coarse cells first, then the centers of each cell from its points alone.

Costs S (K + C / K) F instead of S C F for an iteration with K cells, and is worse than a flat one
by what no point may gain from a center of another cell: ``convergence.jsonl`` holds the objective
within cells and, of a last flat pass, that of all centers together. Cells are shared out between
ranks; a finished cell is a file, so that an interrupted run loses the cells at hand.

S samples, C centers, K cells, F width.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering.arrays import alone, cluster_points, silent
from clustering.kmeans.draw import first_centers
from clustering.kmeans.passes import CHUNK
from clustering.kmeans.state import Array
from clustering.points import ArraySource, Points, RowNumbers
from clustering.progress import Pace
from clustering.search import unpack_array
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.context import World, seed_for
from ovtrain.schema.arrays import NOT_ARRAYS
from ovtrain.schema.atomic import atomic_open

Counts = npt.NDArray[np.int64]
POINT_BYTES = 24
"""Of memory per point of a cell beside its features: keys, row numbers."""
ROWS_AT_ONCE = 2**25
"""Points whose row numbers are held: the assignment is read again for each so many."""


@dataclass(frozen=True)
class Cell:
    """What is left of a cell: its centers (k, F) float32, the objective within it, its points."""

    centers: npt.NDArray[np.float32]
    objective: float
    samples: int


def allot(sizes: Counts, clusters: int) -> Counts:
    """(K,) centers of each cell: in proportion to its points, one at the least, never more than it
    has points; ``clusters`` in all, where there are as many points."""
    given = np.minimum(np.maximum(1, sizes * clusters // max(1, int(sizes.sum()))), sizes)
    # by the largest remainder (or the least): one at a time, since a cell can be full (or at one)
    step = 1 if given.sum() < clusters else -1
    most = sizes if step > 0 else np.full_like(sizes, -1)
    queue = [
        (-step * float(n / (g + (step > 0))), j)
        for j, (n, g) in enumerate(zip(sizes, given, strict=True))
        if n
    ]
    heapq.heapify(queue)
    while queue and given.sum() != clusters:
        _, j = heapq.heappop(queue)
        if (step > 0 and given[j] >= most[j]) or (step < 0 and given[j] <= 1):
            continue
        given[j] += step
        heapq.heappush(queue, (-step * float(sizes[j] / (given[j] + (step > 0))), j))
    return given


def share_out(costs: npt.NDArray[np.float64], ranks: int) -> npt.NDArray[np.int64]:
    """(K,) the rank of each cell: the dearest first, each to the rank with the least so far."""
    queue = [(0.0, rank) for rank in range(ranks)]
    owner = np.zeros(len(costs), np.int64)
    for j in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(queue)
        owner[j] = rank
        heapq.heappush(queue, (load + float(costs[j]), rank))
    return owner


def sizes_of(keys: Array, samples: int, cells: int) -> Counts:
    """(K,) points of each cell."""
    sizes = np.zeros(cells, np.int64)
    for start in range(0, samples, CHUNK):
        found, _ = unpack_array(keys.read(start, min(CHUNK, samples - start)))
        sizes += np.bincount(found[found >= 0], minlength=cells)
    return sizes


def at_once(cells: npt.NDArray[np.int64], sizes: Counts, most: int) -> Iterator[list[int]]:
    """``cells`` in runs of at most ``most`` points, or of one cell."""
    run, points = list[int](), 0
    for j in cells.tolist():
        if run and points + int(sizes[j]) > most:
            yield run
            run, points = [], 0
        run.append(j)
        points += int(sizes[j])
    if run:
        yield run


def rows_of_cells(
    keys: Array, samples: int, wanted: npt.NDArray[np.bool_]
) -> tuple[RowNumbers, RowNumbers]:
    """(cells, rows) of all points of the ``wanted`` cells (K,) bool, by cell, then row."""
    cells, rows = [], []
    for start in range(0, samples, CHUNK):
        found, _ = unpack_array(keys.read(start, min(CHUNK, samples - start)))
        mine = np.flatnonzero((found >= 0) & wanted[found])
        cells.append(found[mine].astype(np.int64))
        rows.append(start + mine)
    none = np.empty(0, np.int64)
    cell, row = np.concatenate([none, *cells]), np.concatenate([none, *rows])
    order = np.argsort(cell, kind="stable")
    return cell[order], row[order]


class Cells:
    """A rank's cells, one after the other."""

    def __init__(
        self, points: Points, config: ClusterConfig, largest: float, folder: Path, world: World,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.points, self.config, self.largest = points, config, largest
        self.folder, self.world, self.say = folder, world, say

    def run(self, keys: Array, sizes: Counts) -> None:
        """Write a file of each of this rank's cells that has none. ``keys``: the points' cells."""
        given = allot(sizes, self.config.clusters)
        owner = share_out(sizes.astype(np.float64) * given, self.world.size)
        wanted = (owner == self.world.rank) & (sizes > 0)
        for j in np.flatnonzero(wanted).tolist():
            wanted[j] = read_cell(self.folder, j) is None
        pace = Pace(int(sizes[wanted].sum()), "k-means of cells", self.say)
        for some in at_once(np.flatnonzero(wanted), sizes, ROWS_AT_ONCE):
            chosen = np.zeros_like(wanted)
            chosen[some] = True
            cell, rows = rows_of_cells(keys, len(self.points), chosen)
            for j in some:
                mine = rows[np.searchsorted(cell, j) : np.searchsorted(cell, j, side="right")]
                write_cell(self.folder, j, self._one(j, mine, int(given[j])))
                pace.step(len(mine))

    def _one(self, j: int, rows: RowNumbers, clusters: int) -> Cell:
        most = int(self.config.memory_gib * 2**29 / (2 * self.points.width + POINT_BYTES))
        if len(rows) > most:  # what does not fit is left out: the rest says where centers belong
            rng = np.random.default_rng(seed_for(self.config.seed, "points of a cell", j))
            rows = np.sort(rng.choice(rows, most, replace=False))
        taken = ArraySource(self.points.source.take(rows))
        inside = replace(self.points, source=taken, bad=rows[:0])
        world = alone(self.world.device, self.world.local_rank)
        seed = seed_for(self.config.seed, "cell", j)
        start = first_centers(inside, clusters, seed, self.config.start, world, fewer=True)
        config = replace(self.config, clusters=len(start), restarts=1, seed=seed)
        made = cluster_points(inside, config, self.largest, world, start, silent)
        return Cell(made.centers, made.objective, len(rows))


def _path(folder: Path, j: int) -> Path:
    return folder / f"cell-{j:07d}.npz"


def write_cell(folder: Path, j: int, cell: Cell) -> None:
    with atomic_open(_path(folder, j)) as handle:
        np.savez(handle, centers=cell.centers, objective=cell.objective, samples=cell.samples)


def read_cell(folder: Path, j: int) -> Cell | None:
    """None where it is not there, or damaged: it is then made again."""
    try:
        with np.load(_path(folder, j), allow_pickle=False) as found:
            held: dict[str, Any] = dict(found)
    except NOT_ARRAYS:
        return None
    return Cell(held["centers"], float(held["objective"]), int(held["samples"]))


def gather(folder: Path, cells: int, into: Array) -> dict[str, float]:
    """Write the centers of all cells one behind the other; (number of them, objective, points)."""
    total = {"centers": 0, "objective": 0.0, "samples": 0}
    for j in range(cells):
        cell = read_cell(folder, j)
        if cell is None:  # of no points
            continue
        into.write(int(total["centers"]), cell.centers)
        total["centers"] += len(cell.centers)
        total["objective"] += cell.objective
        total["samples"] += cell.samples
    return total
