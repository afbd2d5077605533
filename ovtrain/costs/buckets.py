"""Gradients in buckets: how many collectives their sums over data ranks take."""

from __future__ import annotations

from collections.abc import Sequence

BUCKET = 5 * 10**7
"""Numbers that fill a bucket: 200 MB of float32. Smaller ones begin sooner, and pay a latency each;
at 25 GB/s one takes about 10 ms."""


def cut_into_buckets(sizes: Sequence[int], numel: int = BUCKET) -> list[list[int]]:
    """Indices of parameters of these sizes, in their order: each bucket ends with the parameter
    that fills it."""
    found: list[list[int]] = [[]]
    held = 0
    for i, size in enumerate(sizes):
        found[-1].append(i)
        held += size
        if held >= numel:
            found.append([])
            held = 0
    return [bucket for bucket in found if bucket]
