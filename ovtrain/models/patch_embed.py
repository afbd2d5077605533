"""Patch embedding: the public convolution of stride p without bias, as a map of flat patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchProjection(nn.Module):
    """``weight`` (D, 3, p, p) as the public checkpoints hold it."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))

    def forward(self, patches: Tensor) -> Tensor:
        return torch.nn.functional.linear(patches, self.weight.flatten(1))


class PatchEmbeddings(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch_embedding = PatchProjection(width, patch)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3*p*p) normalised patches, channel-major -> (N, D)."""
        return self.patch_embedding(patches)
