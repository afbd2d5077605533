"""Memory that steps use again, and the way to a device.

On a CPU fresh memory costs more than the arithmetic on it: allocators give large blocks back, and
each page of the next one is a fault. On a GPU torch keeps them itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SLACK = 16
"""A sixteenth more than asked for: draws vary by some rows, and pages not touched cost nothing."""


class Buffers:
    """Uninitialised tensors by name. A name's memory is used again by its next ``empty``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        count, key = math.prod(shape), (name, dtype)
        held = self._held.get(key)
        if held is None or len(held) < count:
            held = self._held[key] = torch.empty(count + count // SLACK, dtype=dtype)
        return held[:count].view(shape)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor to ``device``, without waiting for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
