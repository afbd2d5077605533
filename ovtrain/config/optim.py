"""Optimizer section: AdamW for the encoder, row-sparse AdamW for the class centers."""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.config.rules import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE_OR_NONE,
    broken,
    not_among,
)

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class OptimConfig:
    """``warmup``: share of the steps; ``head_lr: null`` follows ``lr``; ``clip``: global
    norm, 0 = off."""

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
        rules = {
            POSITIVE: ("lr", "head_lr", "eps"),
            NOT_NEGATIVE: ("weight_decay", "final_lr", "clip"),
            BELOW_ONE: ("beta1", "beta2"),
            SHARE_OR_NONE: ("warmup",),
        }
        found = broken(self, "optim.", rules)
        return found + not_among(self, "optim.", {"schedule": SCHEDULES})
