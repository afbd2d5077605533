"""Attentive pooling (SigLIP-style): one learned probe per model reads each sequence.

y = attention output (no residual from the probe); out = y + mlp(RMSNorm(y)). B sequences, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ovtrain.models.block import Mlp
from ovtrain.models.seams import first_rows, same
from ovtrain.ops.varlen_attention import Sequences, varlen_attention


class ProbeAttention(nn.Module):
    """``enter`` and ``copy`` are seams (``Encoder.set_seams``). Parameters as in
    ``nn.MultiheadAttention``: rows of queries, keys and values, D each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter: Callable[[Tensor], Tensor] = same
        self.copy: Callable[[Tensor], Tensor] = same
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, probe: Tensor, x: Tensor, sequences: Sequences, backend: str, count: int | None = None
    ) -> Tensor:
        """probe (1, D) reads tokens (N, D) -> (B, D). ``count``: N, where seams add rows."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        width = len(bias) // 3
        q = linear(self.copy(probe), weight[:width], bias[:width])
        q = q.expand(len(sequences), -1).unflatten(-1, (self.heads, -1))
        x = first_rows(self.enter(x), count)
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
        self.whole: Callable[[Tensor, int], Tensor] = same

    def forward(
        self, x: Tensor, sequences: Sequences, backend: str, count: int | None = None
    ) -> Tensor:
        """(N, D) tokens -> (B, D). ``count``: N, where seams add rows."""
        y = self.attention(self.probe[0], x, sequences, backend, count)
        return self.whole(y + self.mlp(self.norm(y)), len(sequences))
