"""Row-sparse AdamW: state, decay and update touch only the rows of the step.

Each row counts its own steps, so its bias correction is that of a row trained alone. A row that a
step leaves out is not decayed and its moments do not age: work is proportional to touched rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SparseRowAdamW:
    """State of ``rows`` (C, D): first (C, D), second (C, D) moments, steps (C,) int32."""

    def __init__(
        self, rows: Tensor, *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self.rows, self.betas, self.eps, self.weight_decay = rows, betas, eps, weight_decay
        self.first = torch.zeros_like(rows)
        self.second = torch.zeros_like(rows)
        self.steps = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)

    @torch.no_grad()
    def step(self, index: Tensor, gradient: Tensor, lr: float) -> None:
        """Update rows ``index`` (S,) unique local rows with ``gradient`` (S, D)."""
        beta1, beta2 = self.betas
        steps = self.steps[index] + 1
        first = self.first[index].lerp_(gradient, 1 - beta1)
        second = self.second[index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        power = steps[:, None].double()
        corrected = first / (1 - beta1**power).float()
        scale = (second / (1 - beta2**power).float()).sqrt_().add_(self.eps)
        rows = self.rows[index].mul_(1 - lr * self.weight_decay)
        self.rows[index] = rows - lr * corrected / scale
        self.first[index], self.second[index], self.steps[index] = first, second, steps

    def state(self) -> dict[str, Tensor]:
        """Row-aligned tensors, rows included: what a checkpoint writes per class range."""
        return {
            "rows": self.rows,
            "first": self.first,
            "second": self.second,
            "steps": self.steps,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy in place, so that views held elsewhere stay valid."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
