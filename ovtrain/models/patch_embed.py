"""Patch embedding: the public 14x14 stride-14 convolution without bias, as a linear map."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int, eps: float) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * patch * patch, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3*p*p) normalised patches -> (N, D), after ``layernorm_pre``."""
        return self.norm(self.projection(patches))
