"""Features like those of an image tower: unit vectors with a common offset, around many places.

Written to a FeatureStore block by block, so that any number of them can be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from ovtrain.schema.features import FeatureStore, write_part, write_store

PART = 50_000
SPREAD, OFFSET = 0.9, 0.7
"""Of the noise about a place and of the direction that all share, places being of length 1: two
unrelated features have a cosine of about 0.2, two of a place 0.65."""


def make_store(folder: Path, samples: int, width: int, places: int, seed: int = 0) -> FeatureStore:
    """(samples, width) float16; the first parts of a larger store are those of a smaller one."""
    rng = torch.Generator().manual_seed(seed)
    table = normalize(torch.randn(places, width, generator=rng), dim=1)
    common = OFFSET * normalize(torch.randn(1, width, generator=rng), dim=1)
    parts = []
    for first in range(0, samples, PART):
        count = min(PART, samples - first)
        rng.manual_seed(seed + 1 + first)
        x = table[torch.randint(places, (count,), generator=rng)] + common
        x += torch.randn(count, width, generator=rng) * (SPREAD / width**0.5)
        rows = normalize(x, dim=1).half().numpy()
        keys = np.arange(first, first + count, dtype=np.uint64)
        parts.append(write_part(folder, f"part-{len(parts):05d}", rows, keys))
    write_store(folder, parts, "generated", "none")
    return FeatureStore(folder)


def centers_of(store: FeatureStore, count: int, seed: int = 0) -> torch.Tensor:
    """(count, width) float32: points of the store."""
    rows = np.sort(np.random.default_rng(seed).choice(len(store), count, replace=False))
    return torch.from_numpy(store.take(rows)).float()
