"""How much is fetched, reduced and updated at once, and the pieces into which that cuts a step: the
plain backend's buckets of gradients, and DeepSpeed's (0.19) limits. Under those no parameter is
larger than a bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ovtrain.costs.gathering import LIVE, PREFETCH
from ovtrain.costs.parameters import Parameter, groups

PLAIN_BUCKET = 5 * 10**7
"""Gradient numbers that fill a bucket of the plain backend, 200 MB of float32. Smaller ones begin
sooner, and pay a latency each; at 25 GB/s one takes about 16 ms."""
BUCKET = 5 * 10**8
"""Gradient numbers that are reduced together, for which memory is set aside however few there are
(DeepSpeed's default)."""
SUB_GROUP = 10**9
"""Numbers of a rank that stage 3 updates together, and takes a norm of (DeepSpeed's default)."""


@dataclass(frozen=True)
class Limits:
    """``prefetch``, ``live``: what stage 3 fetches ahead and holds whole (``costs.gathering``);
    ``plain``: the plain backend's bucket."""

    prefetch: int = PREFETCH
    live: int = LIVE
    bucket: int = BUCKET
    sub_group: int = SUB_GROUP
    plain: int = PLAIN_BUCKET


DEFAULT = Limits()


def cut_into_buckets(sizes: Sequence[int], numel: int = PLAIN_BUCKET) -> list[list[int]]:
    """Of the plain backend: indices of parameters of these sizes, in their order. Each bucket ends
    with the parameter that fills it."""
    found: list[list[int]] = [[]]
    held = 0
    for i, size in enumerate(sizes):
        found[-1].append(i)
        held += size
        if held >= numel:
            found.append([])
            held = 0
    return [bucket for bucket in found if bucket]


def reductions(
    parameters: Sequence[Parameter], stage: int, bucket: int, *, overlap: bool = False
) -> int:
    """Calls that reduce all gradients once. Stage 1 takes them by the optimizer's groups when the
    backward pass is through, stages 2 and 3, and 1 with ``overlap``, as it makes them, last
    parameters first."""
    if stage == 1 and not overlap:
        decayed, others = groups(parameters)
        order: Iterable[Parameter] = [*decayed, *others]
    else:
        order = reversed(parameters)
    calls, held = 0, 0
    for parameter in order:
        if held and held + parameter.numel > bucket:
            calls, held = calls + 1, 0
        held += parameter.numel
    return calls + bool(held)


def sub_groups(parameters: Sequence[Parameter], world: int, most: int) -> list[list[int]]:
    """Of stage 3: of each piece of each of the optimizer's groups, the numbers that a rank holds of
    its parameters. A piece ends with the parameter that brings it to ``most``."""
    found: list[list[int]] = []
    for group in groups(parameters):
        held = [-(-p.numel // world) for p in group]
        piece: list[int] = []
        for n in held:
            piece.append(n)
            if sum(held) > most and sum(piece) >= most:
                found.append(piece)
                piece = []
        if piece:
            found.append(piece)
    return found
