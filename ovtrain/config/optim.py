"""Optimizer section: AdamW for the encoder, row-sparse AdamW for the class centers."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class OptimConfig:
    """``warmup``: share of the steps; ``head_lr: null`` follows ``lr``; ``clip``: global norm."""

    lr: float = 1e-3
    head_lr: float | None = None
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: float = 0.05
    schedule: str = "cosine"
    final_lr: float = 0.0
    clip: float = 1.0

    def problems(self) -> list[str]:
        found: list[str] = []
        if self.lr <= 0:
            found.append(f"optim.lr={self.lr}; allowed: above 0")
        if not 0 <= self.warmup <= 1:
            found.append(f"optim.warmup={self.warmup}; allowed: a share of the steps, 0 to 1")
        if self.schedule not in SCHEDULES:
            found.append(f"optim.schedule={self.schedule}; allowed: {', '.join(SCHEDULES)}")
        if self.clip < 0:
            found.append(f"optim.clip={self.clip}; allowed: 0 (off) or a norm")
        return found
