"""Patch embedding: the public convolution of stride p without bias, as a map of flat patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchEmbeddings(nn.Module):
    """``patch_embedding`` holds the weight as the public checkpoints do, (D, 3, p, p); it is never
    called as a convolution."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3*p*p) normalised patches, channel-major -> (N, D)."""
        return torch.nn.functional.linear(patches, self.patch_embedding.weight.flatten(1))
