"""Whether an update happens, decided on the device: nothing that is no finite number gets into a
weight, a moment or a class row, and nothing waits for the device to find out.

``UpdateGate`` shuts on a step whose gradient norm is not finite or in which a sample is unsound;
both optimizers get its flag and then change nothing. ``TokenGradients`` names the samples: each
token's gradient belongs to one sample, and what is not finite anywhere on a sample's way back
through the encoder arrives at its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UpdateGate:
    """``stay_shut``: after the first refused step refuse every later one, until the run has read
    its metrics and stops. Otherwise only the steps in question are left out."""

    def __init__(self, device: torch.device, *, stay_shut: bool) -> None:
        self.stay_shut = stay_shut
        self.unsound = torch.zeros((), device=device)
        """Samples of the global batch that are unsound, set before ``judge``."""
        self.refused = torch.zeros((), device=device)
        """1.0 where the last judged step takes no part, else 0.0."""

    def judge(self, norm: Tensor) -> Tensor:
        """``refused``, of the step with this global gradient norm ()."""
        bad = ~norm.isfinite() | (self.unsound > 0)
        if self.stay_shut:
            bad = bad | (self.refused > 0)
        self.refused = bad.float()
        return self.refused

    def applied(self, factor: Tensor) -> Tensor:
        """A clip factor, NaN where the step is refused: row optimizers then change nothing."""
        return torch.where(self.refused > 0, torch.nan, factor)


class TokenGradients:
    """Watches the gradient of a module's output (N, D), one row per token."""

    def __init__(self, module: nn.Module) -> None:
        self._finite: Tensor | None = None
        module.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        self._finite = torch.linalg.vector_norm(gradient, ord=torch.inf, dim=1).isfinite()

    def sound(self, cu_seqlens: Tensor) -> Tensor:
        """(B,) bool: the samples all of whose tokens had finite gradients in the last backward
        pass."""
        assert self._finite is not None
        finite, self._finite = self._finite, None
        wrong = torch.nn.functional.pad((~finite).cumsum(0), (1, 0))
        ends = wrong[cu_seqlens.long()]
        return ends[1:] == ends[:-1]


class ReplicatedGradients:
    """Watches gradients of parameters that each tensor rank holds whole. No sum over tensor ranks
    would spread what is not finite in one rank's: the others would update and it would not."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[Tensor] = []
        self.watch()

    def watch(self) -> None:
        """From here on; hooks that were there before come first."""
        for parameter in self._parameters:
            parameter.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        self._sums.append(gradient.sum(dtype=torch.float32))

    def defect(self) -> Tensor:
        """() 0, or NaN where one of the step's gradients was not finite on this rank."""
        sums, self._sums = torch.stack(self._sums), []
        return torch.where(sums.isfinite().all(), 0.0, torch.nan)
