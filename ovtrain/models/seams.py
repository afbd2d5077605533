"""What a model calls where ranks that share it come together; on one rank it does nothing."""

from __future__ import annotations

from torch import Tensor


def same(x: Tensor, rows: int = 0) -> Tensor:
    """A seam on one rank: what several would divide lies whole."""
    return x


def first_rows(x: Tensor, count: int | None) -> Tensor:
    """Without rows that were added to deal them out evenly. All of them are no slice: its gradient
    would be a buffer of zeros, filled and added."""
    return x if count is None or len(x) == count else x[:count]
