"""Clips and pictures in shards with labels, small enough to train on at once: for benchmarks of
whole steps on several processes."""

from __future__ import annotations

import sys
from pathlib import Path

from ovtrain.config.data import DataConfig, SourceConfig
from ovtrain.data.shards import ShardReader
from ovtrain.distributed.collectives import barrier
from ovtrain.distributed.context import World

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.shards import write_labels, write_shards

FRAMES, CHUNKS, SAMPLES, CLASSES = 8, 4, 24, 5000


def two_sources(folder: Path, world: World, *, size: int, budget: int) -> DataConfig:
    """Collective: rank 0 writes them. ``size``: pixels of a side; ``budget``: tokens of a clip."""
    kinds = ("video", "image")
    for kind in kinds if world.is_main else ():
        manifest = write_shards(folder / kind, kind, SAMPLES, size=size, frames=FRAMES)
        write_labels(folder / f"{kind}-labels", manifest, ShardReader(folder / kind).keys, CLASSES)
    barrier(world.group)
    sources = [SourceConfig(k, str(folder / k), str(folder / f"{k}-labels")) for k in kinds]
    return DataConfig(
        sources, size=size, clip_frames=FRAMES, token_budget=budget, chunks=CHUNKS, workers=0
    )
