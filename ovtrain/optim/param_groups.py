"""Parameter groups of the encoder: weight decay on matrices only."""

from __future__ import annotations

from typing import Any

from torch import nn


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups; biases, norms and the pooling probe are not decayed."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or n.endswith("probe")]
    decayed = [p for n, p in named if not (p.ndim < 2 or n.endswith("probe"))]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
