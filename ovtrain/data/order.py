"""Data order as pure functions: which sample is the g-th of a source, its view, its rank.

Nothing here depends on the world size or on workers, so the resume state is a few plain integers:
the samples each source has consumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ovtrain.config.data import VIEW_BLOCK, ViewShares
from ovtrain.distributed.context import seed_for, split


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


@dataclass(frozen=True)
class StepPlan:
    """How a step's samples are dealt: ranks, then micro-steps; both near-even, contiguous."""

    counts: list[int]
    ranks: int
    micro_steps: int

    @classmethod
    def build(cls, counts: list[int], ranks: int, micro_batch: int) -> StepPlan:
        """``micro_batch`` bounds a rank's samples per micro-step; 0 = one micro-step. Otherwise at
        least the number of sources, since each micro-step may hold one sample of each."""
        assert micro_batch == 0 or micro_batch >= len(counts), (micro_batch, counts)
        plan = cls(counts, ranks, 1)
        while micro_batch and max(map(plan.slots, range(plan.micro_steps))) > micro_batch:
            plan = cls(counts, ranks, plan.micro_steps + 1)
        return plan

    def places(self, source: int, rank: int, micro: int) -> range:
        """Places (within the source's part of the batch) of one rank's micro-step."""
        mine = split(self.counts[source], rank, self.ranks)
        part = split(len(mine), micro, self.micro_steps)
        return range(mine.start + part.start, mine.start + part.stop)

    def held(self, rank: int, micro: int) -> list[int]:
        """Samples per source that a rank holds in a micro-step, in packing order."""
        return [len(self.places(s, rank, micro)) for s in range(len(self.counts))]

    def slots(self, micro: int) -> int:
        """Most samples that any rank holds in a micro-step (1 where a rank holds a placeholder)."""
        return max(1, *(sum(self.held(rank, micro)) for rank in range(self.ranks)))

    def gathered_rows(self, source: int, micro: int) -> npt.NDArray[np.int64]:
        """Rows of a source's samples after a gather that pads each rank to ``slots``."""
        slots, rows = self.slots(micro), list[int]()
        for rank in range(self.ranks):
            held = self.held(rank, micro)
            first = rank * slots + sum(held[:source])
            rows += range(first, first + held[source])
        return np.array(rows, dtype=np.int64)
