"""Attentive probe (paper section 4.3): attention pooling -> LayerNorm -> linear on frozen tokens.

The pooling has the encoder's own structure. AdamW, rate decayed linearly to a thousandth, no
weight decay, label smoothing 0.1, clip 5; the last epoch is scored, never the best one. S clips, n
tokens, D width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ovtrain.models.pooling import AttentivePooling
from ovtrain.ops.varlen_attention import Sequences


class AttentiveProbe(nn.Module):
    def __init__(self, width: int, heads: int, classes: int, seed: int) -> None:
        super().__init__()
        self.pool = AttentivePooling(width, heads, 4 * width, 1e-6)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim >= 2:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, K)."""
        count, length, _ = tokens.shape
        bounds = torch.arange(count + 1, dtype=torch.int32) * length
        pooled = self.pool(tokens.flatten(0, 1), Sequences(bounds, length), "sdpa")
        return self.linear(self.norm(pooled))


def attentive_probe(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    heads: int,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
) -> Tensor:
    """(S_test,) predicted classes. ``train`` (S, n, D) and ``test`` may be half precision."""
    probe = AttentiveProbe(train.shape[-1], heads, classes, seed)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            loss = cross_entropy(probe(train[rows].float()), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return torch.cat([probe(part.float()).argmax(1) for part in test.split(batch)])
