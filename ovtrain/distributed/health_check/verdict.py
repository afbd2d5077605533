"""Which ranks are bad, from what all ranks measured. Plain data in, sentences out; no torch.

A rank is bad if it does not answer, if a result of its is wrong, or if one of its speeds is below
``share`` of the median of its peers: ranks with the same device, links of the same kind. Of two
values the higher one is the median, so that the other one can stand out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_high
from typing import TypeVar

from ovtrain.costs.device import peak_tflops

UNITS = {"gemm_tflops": "TFLOP/s", "copy_gbs": "GB/s", "to_gpu_gbs": "GB/s", "from_gpu_gbs": "GB/s"}
"""Speeds that a rank is judged by. The disk's is shown alone: ranks share it."""
WAITING, DONE = "waiting for the other ranks", "done"
JOIN, IN_NODE, BETWEEN, ALL_REDUCE = "join", "link in a node", "link between nodes", "all-reduce"
JOINT = (JOIN, IN_NODE, BETWEEN, ALL_REDUCE)
"""Phases in which a rank may fail by another one's fault."""
T = TypeVar("T")


@dataclass(frozen=True)
class RankRow:
    """``gpu``: its index on the host, -1 on a CPU. ``values``: by name, units as in the name.
    ``faults``: by phase, what went wrong. ``phase``: the last one begun."""

    rank: int
    host: str
    gpu: int = -1
    device: str = ""
    values: dict[str, float] = field(default_factory=dict[str, float])
    faults: dict[str, str] = field(default_factory=dict[str, str])
    phase: str = ""
    answered: bool = True

    @property
    def place(self) -> str:
        return f"rank {self.rank} on {self.host}" + (f" (GPU {self.gpu})" if self.gpu >= 0 else "")

    def begin(self, phase: str) -> RankRow:
        return replace(self, phase=phase)

    def measured(self, values: Mapping[str, float]) -> RankRow:
        return replace(self, values={**self.values, **values})

    def failed(self, text: str) -> RankRow:
        return replace(self, faults={**self.faults, self.phase: text})


@dataclass(frozen=True)
class Link:
    """What ``target`` received from ``source``; ``fault``: "" where every byte was right."""

    source: int
    target: int
    kind: str
    gbs: float
    fault: str = ""


@dataclass(frozen=True)
class Finding:
    """A bad rank, or (None) something that no rank can be named for."""

    rank: int | None
    text: str


def verdict(
    rows: Sequence[RankRow],
    links: Sequence[Link],
    *,
    share: float,
    timeout_s: float,
    peak_share: float = 0.0,
) -> list[Finding]:
    """All findings; none: sound. ``rows``: of all ranks, in order. ``peak_share``: least share of
    the data sheet's bf16 TFLOP/s, for devices that are known (0: not judged by it)."""
    found = [_silent(row, timeout_s) for row in rows if not row.answered]
    found += [
        Finding(row.rank, f"{row.place}: {phase}: {text}")
        for row in rows
        for phase, text in row.faults.items()
        if phase not in JOINT
    ]
    found += _without_gpu(rows)
    found += _slow_devices(rows, share)
    found += _below_peak(rows, peak_share) if peak_share else []
    found += _bad_links(rows, links, share)
    return found or _joint_faults(rows)


def _silent(row: RankRow, timeout_s: float) -> Finding:
    begun = f"; the last it said: {row.phase}" if row.phase else "; it never started"
    return Finding(row.rank, f"{row.place} did not answer within {timeout_s:g} s{begun}")


def _without_gpu(rows: Sequence[RankRow]) -> Iterable[Finding]:
    if any(row.gpu >= 0 for row in rows):
        for row in rows:
            if row.device and row.gpu < 0:
                yield Finding(
                    row.rank, f"{row.place}: torch sees no GPU here, other ranks have one"
                )


def _slow_devices(rows: Sequence[RankRow], share: float) -> Iterable[Finding]:
    for name, unit in UNITS.items():
        for device in sorted({row.device for row in rows}):
            peers = [row for row in rows if row.device == device and name in row.values]
            for row, text in _below(peers, lambda row, n=name: row.values[n], share, unit):
                yield Finding(row.rank, f"{row.place}: {name} {text}")


def _below(
    peers: Sequence[T], speed: Callable[[T], float], share: float, unit: str
) -> Iterable[tuple[T, str]]:
    """Those below ``share`` of the median, each with its speed and the median in words."""
    if not peers:
        return
    middle = median_high(map(speed, peers))
    for one in peers:
        if speed(one) < share * middle:
            yield one, f"{speed(one):.4g} {unit}, the median is {middle:.4g}"


def _below_peak(rows: Sequence[RankRow], share: float) -> Iterable[Finding]:
    for row in rows:
        peak, got = peak_tflops(row.device), row.values.get("gemm_tflops")
        if peak and got is not None and row.gpu >= 0 and got < share * peak:
            text = f"gemm_tflops {got:.4g} TFLOP/s, the data sheet's peak is {peak:g}"
            yield Finding(row.rank, f"{row.place}: {text}")


def _bad_links(rows: Sequence[RankRow], links: Sequence[Link], share: float) -> Iterable[Finding]:
    """Of a bad link's ends the one with more bad links is to blame; both where that is equal."""
    bad: dict[Link, str] = {link: link.fault for link in links if link.fault}
    for kind in sorted({link.kind for link in links}):
        peers = [link for link in links if link.kind == kind]
        bad |= dict(_below(peers, lambda link: link.gbs, share, "GB/s"))
    counts = Counter(end for link in bad for end in (link.source, link.target))
    for link, text in bad.items():
        most = max(counts[link.source], counts[link.target])
        for end in (link.source, link.target):
            if counts[end] == most:
                way = f"{link.kind}: from rank {link.source} to rank {link.target}"
                yield Finding(end, f"{rows[end].place}: {way}: {text}")


def _joint_faults(rows: Sequence[RankRow]) -> list[Finding]:
    """Failures together with others, where nothing else explains them."""
    failed = {phase: [row for row in rows if phase in row.faults] for phase in JOINT}
    for phase, those in failed.items():
        if len(those) == len(rows) > 1:
            return [Finding(None, f"{phase} failed on all ranks: {those[0].faults[phase]}")]
        if those:
            return [Finding(r.rank, f"{r.place}: {phase}: {r.faults[phase]}") for r in those]
    return []


def bad_nodes(rows: Sequence[RankRow], findings: Iterable[Finding]) -> list[str]:
    return sorted({rows[one.rank].host for one in findings if one.rank is not None})
