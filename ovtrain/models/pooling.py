"""Attentive pooling (SigLIP-style): one learned probe per model reads each sequence.

y = attention output (no residual from the probe); out = y + mlp(RMSNorm(y)). B sequences, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovtrain.models.block import Mlp
from ovtrain.ops.varlen_attention import varlen_attention


class AttentivePooling(nn.Module):
    """``query`` and ``key_value`` are the three row blocks of the public ``in_proj_weight``."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, backend: str) -> Tensor:
        """(N, D) tokens -> (B, D)."""
        count = len(cu_seqlens) - 1
        q = self.query(self.probe).expand(count, -1).unflatten(-1, (self.heads, -1))
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        one_each = torch.arange(count + 1, device=x.device, dtype=cu_seqlens.dtype)
        y = varlen_attention(q, k, v, one_each, cu_seqlens, 1, max_seqlen, backend)
        y = self.out(y.flatten(1))
        return y + self.mlp(self.norm(y))
