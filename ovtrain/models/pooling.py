"""Attentive pooling (SigLIP-style): one learned probe per model reads each sequence.

y = attention output (no residual from the probe); out = y + mlp(RMSNorm(y)). B sequences, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ovtrain.models.block import Mlp
from ovtrain.ops.varlen_attention import Sequences, varlen_attention


class ProbeAttention(nn.Module):
    """Parameters as in ``nn.MultiheadAttention``: rows of queries, keys and values, D each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, probe: Tensor, x: Tensor, sequences: Sequences, backend: str) -> Tensor:
        """probe (1, D) reads tokens (N, D) -> (B, D)."""
        count, width = len(sequences), probe.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = linear(probe, weight[:width], bias[:width])
        q = q.expand(count, -1).unflatten(-1, (self.heads, -1))
        kv = linear(x, weight[width:], bias[width:]).unflatten(-1, (2, self.heads, -1))
        k, v = kv.unbind(1)
        y = varlen_attention(q, k, v, sequences.one_each(), sequences, backend)
        return self.out_proj(y.flatten(1))


class AttentivePooling(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = ProbeAttention(width, heads)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, sequences: Sequences, backend: str) -> Tensor:
        """(N, D) tokens -> (B, D)."""
        y = self.attention(self.probe[0], x, sequences, backend)
        return y + self.mlp(self.norm(y))
