"""How samples and class rows are dealt to ranks: arithmetic alone, for the loader and for plans."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

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
        # The last part of a near-even cut is never smaller than another: of every source the last
        # rank holds most in its last micro-step.
        fullest = [-(-count // ranks) for count in counts]
        micro_steps = -(-sum(fullest) // micro_batch) if micro_batch else 1
        while micro_batch and sum(-(-n // micro_steps) for n in fullest) > micro_batch:
            micro_steps += 1
        return cls(counts, ranks, max(1, micro_steps))

    @cached_property
    def shares(self) -> Counter[tuple[int, ...]]:
        """Samples per source of a rank in the whole step, and how many ranks hold them: few
        different ones, however many ranks."""
        ranks = range(self.ranks)
        return Counter(
            tuple(len(split(n, rank, self.ranks)) for n in self.counts) for rank in ranks
        )

    def part(self, share: tuple[int, ...], micro: int) -> tuple[int, ...]:
        """Of such a rank in one micro-step."""
        return tuple(len(split(n, micro, self.micro_steps)) for n in share)

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
        return max(1, *(sum(self.part(share, micro)) for share in self.shares))

    def gathered_rows(self, source: int, micro: int) -> npt.NDArray[np.int64]:
        """Rows of a source's samples after a gather that pads each rank to ``slots``."""
        slots, rows = self.slots(micro), list[int]()
        for rank in range(self.ranks):
            held = self.held(rank, micro)
            first = rank * slots + sum(held[:source])
            rows += range(first, first + held[source])
        return np.array(rows, dtype=np.int64)
