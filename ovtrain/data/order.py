"""Data order as pure functions: which sample is the g-th of a source, and its view. Which rank gets
it: ``ovtrain.config.step_plan``.

Nothing here depends on the world size or on workers, so the resume state is a few plain integers:
the samples each source has consumed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import VIEW_BLOCK, ViewShares
from ovtrain.distributed.context import seed_for


class SampleOrder:
    """Position g of a source's endless stream -> (sample, epoch); a permutation per epoch."""

    def __init__(self, source: str, samples: int, seed: int) -> None:
        self.source, self.samples, self.seed = source, samples, seed
        self._current: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, g: int) -> tuple[int, int]:
        epoch, place = divmod(g, self.samples)
        held, permutation = self._current  # read once: threads may swap the pair
        if epoch != held:
            rng = np.random.default_rng(seed_for(self.seed, f"order:{self.source}", epoch))
            permutation = rng.permutation(self.samples)
            self._current = (epoch, permutation)
        return int(permutation[place]), epoch


def view_of(g: int, shares: ViewShares, seed: int, source: str) -> int:
    """Index (0 codec, 1 frames, 2 tiling) of the view of a source's g-th video sample.

    Every aligned block of 16 holds the asked shares exactly, permuted per block.
    """
    block, place = divmod(g, VIEW_BLOCK)
    views = np.repeat(np.arange(3), shares.counts())
    rng = np.random.default_rng(seed_for(seed, f"views:{source}", block))
    return int(rng.permutation(views)[place])
