"""Reading through a shard cache, for processes of their own: no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ovtrain.data.shard_cache import ShardCache
from ovtrain.data.shards import ShardReader
from ovtrain.data.tars import TarFiles
from ovtrain.schema.sample import IMAGE


def read_often(task: tuple[Path, Path, int]) -> int:
    """How often a random member differed from what its tar holds."""
    shards, folder, seed = task
    reader, plain, cached = ShardReader(shards), TarFiles(), TarFiles(ShardCache(folder, 2**30))
    places = np.random.default_rng(seed).integers(len(reader), size=300).tolist()
    members = [reader.locate(i)[IMAGE] for i in places]
    return sum(cached.read(m, "") != plain.read(m, "") for m in members)
