"""Learning-rate schedules in closed form: a function of the step, so a resume continues exactly."""

from __future__ import annotations

import math

from ovtrain.config.optim import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int, peak: float | None = None) -> float:
    """Rate of update ``step`` (0-based) of ``steps``: linear warm-up, then the schedule."""
    peak = config.lr if peak is None else peak
    warmup = round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    share = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.final_lr + (peak - config.final_lr) * share
