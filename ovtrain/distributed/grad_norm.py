"""One global gradient norm over both parameter planes, and the clip factor it implies.

The replicated plane's gradients are averages that every rank (or ZeRO partition) already agrees on;
the class-sharded plane's rows belong to one rank each, so their squares are summed over ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ovtrain.distributed.collectives import all_reduce


def sharded_square_sum(gradients: list[Tensor], group: dist.ProcessGroup | None) -> Tensor:
    """() float32: squares of the class-sharded gradients, summed over rows and ranks."""
    device = gradients[0].device if gradients else torch.device("cpu")
    local = torch.zeros((), device=device)
    for gradient in gradients:
        local = local + gradient.float().square().sum()
    return all_reduce(local, group)


def joint_norm(replicated_norm: Tensor, sharded_squares: Tensor) -> Tensor:
    """() sqrt(|encoder gradient|^2 + |head gradient|^2)."""
    return (replicated_norm.float().square() + sharded_squares.to(replicated_norm.device)).sqrt()


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """() factor at most 1 that brings ``norm`` to ``limit``; 1 when ``limit`` is 0 (off)."""
    if limit <= 0:
        return torch.ones_like(norm)
    return (limit / (norm + 1e-6)).clamp(max=1.0)
