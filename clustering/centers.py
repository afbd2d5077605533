"""Points -> centers: k-means, flat or hierarchical, no center empty.

Writes below ``folder``: ``flat/`` and, hierarchical, ``coarse/``
(``clustering.kmeans.state``); the result is ``flat/best.npy``, (C, F) float32. Called again with
the same stamp it goes on where it was, to the bit; every rank calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clustering.kmeans.cells import Cells, gather, sizes_of
from clustering.kmeans.lloyd import Lloyd
from clustering.kmeans.passes import Passes
from clustering.kmeans.state import FolderState
from clustering.neighbours import make_layout
from clustering.points import Points
from ovtrain.config.cluster import ClusterConfig
from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World
from ovtrain.schema.errors import ConfigError, LabelError


@dataclass(frozen=True)
class Made:
    """``centers``: the file; ``rows``: of ``convergence.jsonl``; ``objective``: of the centers
    as they are, the sum of squared distances."""

    centers: Path
    rows: list[dict[str, Any]]
    objective: float


@dataclass(frozen=True)
class CenterJob:
    """What one k-means needs. ``largest``: absolute number of the features; ``stamp``: digest of
    the features and settings that the centers depend on."""

    points: Points
    largest: float
    config: ClusterConfig
    world: World
    folder: Path
    stamp: str
    say: Callable[[str], None]


def make_centers(job: CenterJob) -> Made:
    """Collective. ConfigError where there are fewer distinct points than centers, with both
    numbers."""
    points, config = job.points, job.config
    if not points.usable:
        raise LabelError("features", f"none of {len(points)} can be used", fix="make them again")
    if points.usable < config.clusters:
        raise ConfigError(
            f"clusters={config.clusters}",
            f"{points.usable} usable features",
            allowed=f"1 to {points.usable}",
            fix=f"set clusters={points.usable} or lower",
        )
    state = _state(job, "flat", config.clusters)
    try:
        if config.coarse and state.progress.iteration < 0 and not state.progress.done:
            _prepare_from_cells(job, state)
        flat = replace(config, iterations=0) if config.coarse else config
        _lloyd(job, flat, state).run()
        return Made(state.best, state.progress.rows, state.progress.objective)
    finally:
        state.close()


def _state(job: CenterJob, name: str, clusters: int) -> FolderState:
    shape = (len(job.points), clusters, job.points.width)
    return FolderState(job.folder / name, job.stamp, *shape, job.world)


def _lloyd(job: CenterJob, config: ClusterConfig, state: FolderState) -> Lloyd:
    points = job.points
    layout = make_layout(
        job.world, len(points), config.clusters, points.width, config.memory_gib,
        config.center_shards,
    )  # fmt: skip
    passes = Passes(points, layout, config.clusters, config.engine, job.largest, job.say)
    return Lloyd(points, config, passes, state, job.say)


def _prepare_from_cells(job: CenterJob, state: FolderState) -> None:
    """First centers of the flat state: those of all cells. Of centers that no cell could take, the
    last step finds points, as it does for any that is empty."""
    config, world, began = job.config, job.world, time.monotonic()
    coarse = _state(job, "coarse", config.coarse)
    try:
        settings = replace(config, clusters=config.coarse, restarts=1, largest=0.0, coarse=0)
        _lloyd(job, settings, coarse).run()
        keys = coarse.nearest(coarse.progress.slot)
        sizes = sizes_of(keys, len(job.points), config.coarse)
        folder = job.folder / "coarse" / "cells"  # goes when the cells do
        Cells(job.points, config, job.largest, folder, world, job.say).run(keys, sizes)
        barrier(world.group)
        total = None
        if world.is_main:
            total = gather(folder, config.coarse, state.centers(0))
            first = state.centers(0).read(0, 1)
            for i in range(int(total["centers"]), config.clusters):
                state.centers(0).write(i, first)  # equal to another one: empty
        total = broadcast_object(total, world.group)
        rows = [{"stage": "coarse", **row} for row in coarse.progress.rows]
    finally:
        coarse.close()
    cells: dict[str, Any] = {
        "stage": "cells",
        "restart": 0,
        "iteration": 0,
        "objective": total["objective"],
        "mean_squared": total["objective"] / total["samples"],
        "repaired": config.clusters - int(total["centers"]),
        "seconds": round(time.monotonic() - began, 3),
    }
    state.progress.rows, state.progress.iteration = [*rows, cells], 0
    state.save()
