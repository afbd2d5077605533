"""Intervals of accuracies."""

from __future__ import annotations


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson interval of a share measured on ``count`` clips."""
    centre = share + z * z / (2 * count)
    spread = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale
