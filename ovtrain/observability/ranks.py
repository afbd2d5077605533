"""Which rank holds the others up, which one holds most memory.

A rank's own time is its time per step less what collectives held it up for: waiting for data, its
host's work, its device's. All ranks pass a step in the same time, but the slow one waits for
nobody: only the own time tells. The rows of all ranks are brought together at log time by the
caller; nothing here communicates.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import median_low

import torch

MIB = 2**20


@dataclass(frozen=True)
class RankRow:
    """One rank's numbers of a window: own time and waiting for data in ms per step, peak memory
    in MiB."""

    own_ms: float
    data_wait_ms: float
    memory_mib: float

    def numbers(self) -> tuple[float, ...]:
        """As they travel: ``RankRow(*numbers)`` is the row again."""
        return astuple(self)


def peak_memory_mib(device: torch.device) -> float:
    """Most that this rank ever held: of the GPU by torch's count, else of the process (RSS,
    without its data workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def rank_metrics(rows: Sequence[RankRow]) -> dict[str, float]:
    """{"rank_ms_max", "rank_ms_median", "slowest_rank", "memory_mib_max", "memory_rank"}."""
    own, memory = [row.own_ms for row in rows], [row.memory_mib for row in rows]
    return {
        "rank_ms_max": max(own),
        "rank_ms_median": median_low(own),
        "slowest_rank": own.index(max(own)),
        "memory_mib_max": max(memory),
        "memory_rank": memory.index(max(memory)),
    }


def outliers(values: Sequence[float], factor: float) -> list[int]:
    """Ranks beyond ``factor`` times the median, worst first. Of two ranks the lower value is the
    median, so that the other one can stand out."""
    limit = factor * median_low(values)
    return sorted((r for r, v in enumerate(values) if v > limit), key=lambda r: -values[r])


class RankWatch:
    """Turns windows into warnings. ``hosts``: of each rank. A rank is named where its own time is
    beyond ``slow`` times the median, or its memory beyond ``large`` times; once named, not again
    for ``quiet`` windows."""

    def __init__(self, hosts: Sequence[str], slow: float, large: float, quiet: int) -> None:
        self.hosts, self.slow, self.large, self.quiet = hosts, slow, large, quiet
        self._window = 0
        self._named: dict[tuple[str, int], int] = {}

    def warnings(self, rows: Sequence[RankRow]) -> list[str]:
        """At most one line for each kind: the worst rank that is due, and how many others are."""
        self._window += 1
        own, memory = [row.own_ms for row in rows], [row.memory_mib for row in rows]
        lines: list[str] = []
        if slow := self._due("slow", outliers(own, self.slow)):
            worst, middle = rows[slow[0]], median_low(own)
            lines.append(
                f"{self._place(slow[0])} is slow: {worst.own_ms:.0f} ms of its own per step, "
                f"{worst.own_ms / max(middle, 1e-9):.1f} times the median of {middle:.0f}; "
                f"{worst.data_wait_ms:.0f} ms of it waiting for data" + _others(slow)
            )
        if large := self._due("large", outliers(memory, self.large)):
            most, middle = memory[large[0]], median_low(memory)
            lines.append(
                f"{self._place(large[0])} held {most:.0f} MiB of memory, "
                f"{most / max(middle, 1e-9):.1f} times the median of {middle:.0f}" + _others(large)
            )
        return lines

    def _due(self, kind: str, ranks: Sequence[int]) -> list[int]:
        before = self._window - self.quiet
        due = [r for r in ranks if self._named.get((kind, r), before) <= before]
        self._named |= {(kind, r): self._window for r in due}
        return due

    def _place(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"


def _others(ranks: Sequence[int]) -> str:
    if len(ranks) < 2:
        return ""
    shown = ", ".join(map(str, ranks[1:9])) + (", ..." if len(ranks) > 9 else "")
    return f" (also rank{'s' if len(ranks) > 2 else ''} {shown})"
