"""One global gradient norm over both parameter planes, and the clip factor it implies.

The replicated plane's gradients are averages that every rank (or ZeRO partition) already agrees on;
the class-sharded plane's rows belong to one rank each, so their squares are summed over ranks
(engine/step.py, together with the losses).
"""

from __future__ import annotations

import torch
from torch import Tensor


def joint_norm(replicated_norm: Tensor, sharded_squares: Tensor) -> Tensor:
    """() sqrt(|encoder gradient|^2 + |head gradient|^2)."""
    return (replicated_norm.float().square() + sharded_squares.to(replicated_norm.device)).sqrt()


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """() factor at most 1 that brings ``norm`` to ``limit``; 1 when ``limit`` is 0 (off)."""
    if limit <= 0:
        return torch.ones_like(norm)
    return (limit / (norm + 1e-6)).clamp(max=1.0)
