"""How a step's samples fall on ranks and micro-steps, as numbers that formulas need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ovtrain.config.step_plan import StepPlan


@dataclass(frozen=True)
class Deal:
    """Ranks: data ranks. slots[k]: most samples of a rank in micro-step k; samples[s][k]: of source
    s on all ranks; held: per rank and micro-step, samples of each source (each combination once);
    whole: per rank, of the whole step (likewise); ranks: per rank, how often a micro-step holds
    which (likewise)."""

    micro_steps: int
    slots: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]
    held: frozenset[tuple[int, ...]]
    whole: frozenset[tuple[int, ...]]
    ranks: frozenset[tuple[tuple[tuple[int, ...], int], ...]]

    def most(self, each: Sequence[float]) -> float:
        """Of the fullest rank in its fullest micro-step, where a sample of source s counts
        ``each[s]``."""
        return max(_sum(part, each) for part in self.held)

    def most_of_a_step(self, each: Sequence[float]) -> float:
        return max(_sum(part, each) for part in self.whole)

    def fullest(self, each: Sequence[float]) -> list[tuple[float, int, int]]:
        """Of the rank with most in the step: that sum and the samples of a micro-step, one
        placeholder where it holds none, and how many micro-steps hold so much."""
        ranks = [
            [(_sum(part, each), max(1, sum(part)), count) for part, count in rank]
            for rank in sorted(self.ranks)
        ]
        return max(ranks, key=lambda found: sum(most * count for most, _, count in found))


def _sum(counts: Sequence[int], each: Sequence[float]) -> float:
    return sum(n * x for n, x in zip(counts, each, strict=True))


@lru_cache(maxsize=1024)
def deal(counts: tuple[int, ...], ranks: int, micro_batch: int) -> Deal:
    plan = StepPlan.build(list(counts), ranks, micro_batch)
    micros = range(plan.micro_steps)
    table = {share: [plan.part(share, k) for k in micros] for share in plan.shares}
    return Deal(
        plan.micro_steps,
        tuple(max(1, *(sum(row[k]) for row in table.values())) for k in micros),
        tuple(
            tuple(
                sum(plan.shares[share] * row[k][s] for share, row in table.items()) for k in micros
            )
            for s in range(len(counts))
        ),
        frozenset(part for row in table.values() for part in row),
        frozenset(plan.shares),
        frozenset(tuple(Counter(row).items()) for row in table.values()),
    )
