"""Self-attention of one block on packed tokens.

The fused projection is stored as (heads, 3, head_dim) rows, so that a tensor-parallel shard of
heads is one contiguous slice. N tokens, D width, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovtrain.models.rope3d import apply_rope, rope_tables
from ovtrain.models.seams import first_rows
from ovtrain.ops.varlen_attention import Sequences, varlen_attention


@dataclass(frozen=True)
class Packing:
    """What every block of a forward pass shares: who attends to whom, in whole samples (or their
    groups) and in temporal windows, rotation tables (N, 1, 1, d), the attention backend."""

    whole: Sequences
    windows: Sequences | None
    cos: Tensor
    sin: Tensor
    backend: str


def make_packing(
    whole: Sequences,
    windows: Sequences | None,
    positions: Tensor,
    *,
    head_dim: int,
    theta: float,
    style: str,
    dtype: torch.dtype,
    backend: str,
) -> Packing:
    """``dtype``: that of queries and keys, which the rotation tables get, too."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (
        table[:, None].to(dtype) for table in rope_tables(positions, head_dim, theta, style, exact)
    )
    return Packing(whole, windows, cos, sin, backend)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Callable[..., Tensor] = varlen_attention
        self.make_projections(width)
        self.out_proj = nn.Linear(width, width)

    def make_projections(self, width: int) -> None:
        self.qkv = nn.Linear(width, 3 * width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> queries and keys (N, H, 2, d), values (N, H, d)."""
        # Split, not sliced: the gradients of slices are two buffers of zeros, filled and added.
        qk, v = self.qkv(x).unflatten(-1, (self.heads, 3, -1)).split([2, 1], 2)
        return qk, v.squeeze(2)

    def forward(self, x: Tensor, packing: Packing, windowed: bool) -> Tensor:
        """(N, D) -> (N, D)."""
        qk, v = (first_rows(part, len(packing.cos)) for part in self.project(x))
        q, k = apply_rope(qk, packing.cos, packing.sin).unbind(2)
        sequences = packing.windows if windowed and packing.windows else packing.whole
        attended = self.attend(q, k, v, sequences, sequences, packing.backend)
        return self.out_proj(attended.flatten(1))
