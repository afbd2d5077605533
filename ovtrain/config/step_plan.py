"""How samples and class rows are dealt to ranks: arithmetic alone, for the loader and for plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def split(count: int, part: int, parts: int) -> range:
    """Part ``part`` of ``count`` items cut into ``parts`` near-even contiguous ranges."""
    return range(count * part // parts, count * (part + 1) // parts)


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
        if micro_batch:  # fewer micro-steps cannot do
            plan = cls(counts, ranks, -(-plan.slots(0) // micro_batch))
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
