"""Self-attention of one block on packed tokens.

The fused projection is stored as (heads, 3, head_dim) rows, so that a tensor-parallel shard of
heads is one contiguous slice. N tokens, D width, H heads, d head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ovtrain.models.rope3d import apply_rope
from ovtrain.ops.varlen_attention import varlen_attention


@dataclass(frozen=True)
class Packing:
    """What every block of a forward pass shares: sequence bounds, rotation tables, backend."""

    cu_seqlens: Tensor
    max_seqlen: int
    cos: Tensor
    sin: Tensor
    backend: str


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, D) -> (N, D)."""
        qkv = self.qkv(x).unflatten(-1, (self.heads, 3, -1))  # (N, H, 3, d)
        q, k, v = qkv.unbind(2)
        q = apply_rope(q, packing.cos, packing.sin)
        k = apply_rope(k, packing.cos, packing.sin)
        cu, longest = packing.cu_seqlens, packing.max_seqlen
        attended = varlen_attention(q, k, v, cu, cu, longest, longest, packing.backend)
        return self.out(attended.flatten(1))
