"""What ranks measure together: links from rank to rank, and an all-reduce over all of them.

Links: a ring over the ranks of each node, and for each place in a node a ring over the nodes, so
that every device sends and receives once in its node and once between nodes. R ranks.
"""

# torch.distributed is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ovtrain.distributed.health_check.local import Place, WrongResult
from ovtrain.distributed.health_check.verdict import BETWEEN, IN_NODE, Link

MIB = {"cuda": 64, "cpu": 8}
"""Of one transfer."""
ROUNDS, REPEATS = 3, 2
"""The best of so many rounds of so many transfers counts: what else goes on makes some slower."""
Pair = tuple[int, int]


def rings(hosts: Sequence[str]) -> dict[str, list[list[int]]]:
    """Ranks in rings, by kind of link; ``hosts``: of each rank."""
    nodes: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    widest = max(map(len, nodes.values()))
    across = [[own[i] for own in nodes.values() if len(own) > i] for i in range(widest)]
    found = {IN_NODE: list(nodes.values()), BETWEEN: across}
    return {kind: [r for r in of_kind if len(r) > 1] for kind, of_kind in found.items()}


def rounds(of_kind: Iterable[Sequence[int]]) -> list[list[Pair]]:
    """(source, target) of every ring's links, in rounds in which no rank has two of them."""
    made: list[list[Pair]] = [[], [], []]
    for ring in of_kind:
        last = len(ring) - 1
        for i, source in enumerate(ring):
            turn = 2 if i == last and i % 2 == 0 else i % 2
            made[turn].append((source, ring[(i + 1) % len(ring)]))
    return [pairs for pairs in made if pairs]


def measure_links(place: Place, kind: str, hosts: Sequence[str]) -> list[Link]:
    """Collective over the default group: the links of a kind that end at this rank."""
    found: list[Link] = []
    for pairs in rounds(rings(hosts)[kind]):
        for source, target in pairs:
            if place.rank == source:
                _send(place, target)
            elif place.rank == target:
                found.append(_receive(place, source, kind))
    return found


def _payload(place: Place, source: int) -> Tensor:
    """(n,) int32 that only ``source`` sends."""
    count = MIB[place.device.type] * 2**18
    return torch.arange(count, dtype=torch.int32, device=place.device) ^ (source + 1) * 0x10001


def _send(place: Place, target: int) -> None:
    x = _payload(place, place.rank)
    for _ in range(1 + ROUNDS * REPEATS):
        dist.send(x, target)
    place.finish()


def _receive(place: Place, source: int, kind: str) -> Link:
    x = torch.empty_like(_payload(place, source))
    # The first one makes the connection, and waits for the sender.
    dist.recv(x, source)
    place.finish()
    gbs = 4 * x.numel() / 1e9 / _best(place, lambda: dist.recv(x, source))
    wrong = int((x != _payload(place, source)).sum())
    fault = f"{wrong} of {x.numel()} numbers arrived wrong" if wrong else ""
    return Link(source, place.rank, kind, gbs, fault)


def all_reduce(place: Place) -> dict[str, float]:
    """Collective over the default group: sums of integers that fp32 holds exactly, and the bus
    bandwidth 2 (R - 1) / R * bytes / time. Raises WrongResult."""
    count, ranks = MIB[place.device.type] * 2**18, place.size
    base = torch.arange(count, device=place.device).remainder(251).float()
    x = base + place.rank
    untyped: Any = dist
    untyped.all_reduce(x)
    wrong = int((x != ranks * base + ranks * (ranks - 1) / 2).sum())
    if wrong:
        raise WrongResult(f"wrong result: {wrong} of {count} sums over all ranks")
    x.zero_()
    seconds = _best(place, lambda: untyped.all_reduce(x))
    return {"all_reduce_gbs": 2 * (ranks - 1) / ranks * 4 * count / seconds / 1e9}


def _best(place: Place, transfer: Callable[[], object]) -> float:
    """Seconds of one transfer, in the best round."""
    took: list[float] = []
    for _ in range(ROUNDS):
        place.finish()
        begin = time.perf_counter()
        for _ in range(REPEATS):
            transfer()
        place.finish()
        took.append((time.perf_counter() - begin) / REPEATS)
    return min(took)
