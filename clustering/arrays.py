"""k-means and nearest centers of features in memory, in one process: the whole thing as two calls.

    made = cluster(x, ClusterConfig(clusters=100, top=1, seed=0))   # x (S, F) float16
    ids, squared = nearest(x, made.centers, top=10, config)

S samples, C centers, F width, K neighbours. The same code, the same bits as on disk and on many
ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clustering.kmeans.lloyd import Lloyd
from clustering.kmeans.passes import Passes
from clustering.kmeans.state import MemoryArray, MemoryState
from clustering.neighbours import Neighbours, make_layout
from clustering.points import ArraySource, Half, Points, RowNumbers
from clustering.search import unpack_array
from clustering.survey import look
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.context import World
from ovtrain.schema.errors import ConfigError


@dataclass(frozen=True)
class Clustered:
    """centers (C, F) float32; objective, the sum of squared distances to them; rows, one of each
    iteration, as in ``convergence.jsonl``."""

    centers: npt.NDArray[np.float32]
    objective: float
    rows: list[dict[str, Any]]


def silent(_: str) -> None:
    """Says nothing."""


def cluster(
    x: Half,
    config: ClusterConfig,
    first: RowNumbers | None = None,
    device: torch.device | None = None,
    say: Callable[[str], None] = silent,
) -> Clustered:
    """Flat k-means of ``x`` (S, F) float16. ``first`` (C,): the rows that are the first centers,
    else drawn from the seed. ``config.coarse`` has no effect here.

    Raises LabelError on bad rows that the config refuses, ConfigError on fewer distinct points than
    centers.
    """
    world = alone(device)
    found = look(ArraySource(x), world, say)
    bad = found.bad(spherical=config.spherical, policy=config.bad)
    points = Points(ArraySource(x), world.device, config.spherical, bad)
    return cluster_points(points, config, found.largest, world, first, say)


def cluster_points(
    points: Points,
    config: ClusterConfig,
    largest: float,
    world: World,
    first: RowNumbers | None,
    say: Callable[[str], None],
) -> Clustered:
    """As ``cluster``, of points whose ``largest`` absolute number is known."""
    shape = (config.clusters, points.width)
    layout = make_layout(world, len(points), *shape, config.memory_gib, 1)
    passes = Passes(points, layout, config.clusters, config.engine, largest, say)
    state = MemoryState(len(points), *shape)
    Lloyd(points, config, passes, state, say).run(first)
    return Clustered(state.best, state.progress.objective, state.progress.rows)


def nearest(
    x: Half,
    centers: npt.NDArray[np.float32],
    top: int,
    config: ClusterConfig,
    device: torch.device | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """ids (S, K) and squared distances (S, K) of the ``top`` nearest of ``centers`` (C, F), nearest
    first; -1 for rows that cannot be used. ``config``: engine, spherical, bad, memory_gib."""
    if top > len(centers):
        raise ConfigError(f"top={top}", f"{len(centers)} centers", fix=f"top={len(centers)}")
    world = alone(device)
    found = look(ArraySource(x), world, silent)
    bad = found.bad(spherical=config.spherical, policy=config.bad)
    points = Points(ArraySource(x), world.device, config.spherical, bad)
    layout = make_layout(world, len(x), len(centers), centers.shape[1], config.memory_gib, 1)
    keys = np.full((len(x), top), -1, np.int64)
    neighbours = Neighbours(points, layout, config.engine)
    for block, some in neighbours.keys(MemoryArray(centers), top, layout.samples, _count_nothing):
        keys[block.rows] = some.cpu().numpy()
    return unpack_array(keys)


def alone(device: torch.device | None = None, local_rank: int = 0) -> World:
    """A world of this process only."""
    if device is None:
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else None
    return World(0, local_rank, 1, device or torch.device("cpu"), None)


def _count_nothing(_: int) -> None:
    """Progress of what is short."""
